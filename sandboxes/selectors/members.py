"""Reads of members, within the actor's organization."""

from __future__ import annotations

from datetime import datetime

from django.db.models import Max, Q
from django.utils import timezone

from sandboxes import permissions
from sandboxes.models import Membership
from sandboxes.permissions import Actor


def member_list(*, actor: Actor) -> list[tuple[Membership, datetime | None]]:
    """All members, oldest first, each with the time until which a link can still sign him in."""
    permissions.require(actor, "member.list", actor.organization_id)
    valid = Q(user__sign_in_links__used_at=None, user__sign_in_links__expires_at__gt=timezone.now())
    rows = (
        Membership.objects.filter(organization_id=actor.organization_id)
        .select_related("user")
        .annotate(until=Max("user__sign_in_links__expires_at", filter=valid))
        .order_by("pk")
    )
    return [(row, row.until) for row in rows]
