"""Whether somebody who was let in may still be there."""

from __future__ import annotations

from dataclasses import replace

from django.db.models import Q
from django.utils import timezone

from sandboxes import permissions
from sandboxes.models import Membership, Role, Token
from sandboxes.permissions import Actor


def actor_still_allowed(*, actor: Actor, action: str) -> bool:
    """As of now: the token is neither revoked nor expired, its person is active and a member, the role suffices."""
    role = None
    if actor.token_id is not None:
        unexpired = Q(expires_at=None) | Q(expires_at__gt=timezone.now())
        token = Token.objects.filter(unexpired, pk=actor.token_id, revoked_at=None).first()
        if token is None:
            return False
        role = Role(token.role)
    if actor.user_id is not None:
        membership = Membership.objects.filter(
            user_id=actor.user_id, user__is_active=True, organization_id=actor.organization_id
        ).first()
        if membership is None:
            return False
        role = Role(membership.role)
    return role is not None and permissions.allows(replace(actor, role=role), action, actor.organization_id)
