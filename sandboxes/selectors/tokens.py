"""Reads of tokens, within the actor's organization."""

from __future__ import annotations

from django.db.models import Q

from sandboxes import permissions
from sandboxes.models import Token
from sandboxes.permissions import Actor


def token_list(*, actor: Actor) -> list[Token]:
    """The organization's own tokens and the actor's; an administrator sees everybody's. Newest first."""
    permissions.require(actor, "organization.view", actor.organization_id)
    rows = Token.objects.filter(organization_id=actor.organization_id).select_related("user")
    if not permissions.allows(actor, "token.revoke_any", actor.organization_id):
        rows = rows.filter(Q(user=None) | Q(user_id=actor.user_id))
    return list(rows.order_by("-created_at")[:500])
