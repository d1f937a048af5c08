"""API tokens: made, checked, revoked; a token's secret is shown once and kept as its hash."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import timedelta

from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from sandboxes import audit, permissions
from sandboxes.errors import Forbidden, Invalid, InvalidToken, NotFound
from sandboxes.models import Membership, Role, Token
from sandboxes.permissions import RANK, SCOPES, Actor
from sandboxes.services.accounts import digest

# The JavaScript SDK takes a token without an organization only if it starts so.
PREFIX = "ddo_"
SEEN_EVERY = timedelta(minutes=1)


def token_create(
    *,
    actor: Actor,
    name: str,
    personal: bool = True,
    scopes: Sequence[str] = ("read", "sandboxes"),
    role: Role = Role.MEMBER,
    expires_in_days: int | None = None,
) -> tuple[Token, str]:
    """A new token and its secret. Forbidden for more than the actor himself may; Invalid for values out of bounds."""
    permissions.require(
        actor, "token.create_personal" if personal else "token.create_organization", actor.organization_id
    )
    if not 1 <= len(name.strip()) <= 100:
        raise Invalid("a token's name has 1 to 100 characters", field="name")
    if not scopes or not set(scopes) <= set(SCOPES):
        raise Invalid(f"scopes are one or more of {', '.join(SCOPES)}", field="scopes")
    if expires_in_days is not None and not 1 <= expires_in_days <= 3650:
        raise Invalid("a token expires in 1 to 3650 days, or never", field="expires_in_days")
    if personal and actor.user_id is None:
        raise Forbidden("an organization's token cannot make personal ones")
    if RANK[role] > RANK[actor.role] or (actor.scopes is not None and not set(scopes) <= actor.scopes):
        raise Forbidden("a token cannot be allowed more than its maker is")
    secret = PREFIX + secrets.token_hex(32)
    with transaction.atomic():
        token = Token.objects.create(
            organization_id=actor.organization_id,
            user_id=actor.user_id if personal else None,
            created_by_id=actor.user_id,
            name=name.strip(),
            digest=digest(secret),
            prefix=secret[:12],
            role=role,
            scopes=sorted(set(scopes)),
            expires_at=timezone.now() + timedelta(days=expires_in_days) if expires_in_days else None,
        )
        audit.record(
            actor=actor,
            organization_id=actor.organization_id,
            action="token.create",
            target=f"{token.prefix}… {token.name}",
            scopes=token.scopes,
            personal=personal,
        )
        audit.publish(organization_id=actor.organization_id, kind="token", payload={})
    return token, secret


def token_actor(*, secret: str, organization: str = "") -> Actor:
    """Whoever the secret stands for, acting in its organization, or for a personal one in that of the slug.

    InvalidToken if it is unknown, expired or revoked, or its person is no member (any more).
    """
    now = timezone.now()
    token = Token.objects.select_related("user", "organization").filter(digest=digest(secret)).first()
    if token is None or token.revoked_at or (token.expires_at and token.expires_at <= now):
        raise InvalidToken
    if token.last_used_at is None or now - token.last_used_at > SEEN_EVERY:
        Token.objects.filter(pk=token.pk).update(last_used_at=now)
    scopes = frozenset(token.scopes)
    if token.user is None:
        if organization and organization != token.organization.slug:
            raise InvalidToken("the token belongs to another organization")
        return Actor(
            organization_id=token.organization_id,
            role=Role(token.role),
            label=f"token {token.name}",
            token_id=token.pk,
            scopes=scopes,
        )
    memberships = Membership.objects.filter(user=token.user, user__is_active=True)
    membership = memberships.filter(
        **({"organization__slug": organization} if organization else {"organization_id": token.organization_id})
    ).first()
    if membership is None:
        raise InvalidToken("the token's owner is not a member of that organization")
    return Actor(
        organization_id=membership.organization_id,
        role=Role(membership.role),
        label=token.user.label,
        user_id=token.user.pk,
        token_id=token.pk,
        scopes=scopes,
    )


def token_revoke(*, token_id: int, actor: Actor) -> None:
    """End a token at once: one's own, or any as administrator. NotFound, Forbidden; repeatable."""
    with transaction.atomic():
        token = Token.objects.filter(Q(pk=token_id, organization_id=actor.organization_id)).first()
        if token is None:
            raise NotFound
        if token.user_id is None or token.user_id != actor.user_id:
            permissions.require(actor, "token.revoke_any", actor.organization_id)
        if Token.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=timezone.now()):
            audit.record(
                actor=actor,
                organization_id=actor.organization_id,
                action="token.revoke",
                target=f"{token.prefix}… {token.name}",
            )
            audit.publish(organization_id=actor.organization_id, kind="token", payload={})
