"""Signing in by one-time links and passwords, and who a signed-in person acts as."""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta

from django.db import transaction
from django.utils import timezone

from sandboxes import audit
from sandboxes.errors import LinkUsed, NotFound
from sandboxes.models import Membership, Organization, Role, SignInLink, User
from sandboxes.permissions import SYSTEM, Actor

LINK_LIFETIME = timedelta(minutes=15)


def digest(secret: str) -> str:
    """What is stored instead of a random 256-bit secret; such a secret needs no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def sign_in_link_create(*, user: User, lifetime: timedelta = LINK_LIFETIME) -> str:
    """A new link's secret, good for one sign-in within its lifetime; shown once, kept as its hash."""
    secret = secrets.token_urlsafe(32)
    now = timezone.now()
    SignInLink.objects.filter(expires_at__lt=now - timedelta(days=1)).delete()
    SignInLink.objects.create(user=user, digest=digest(secret), expires_at=now + lifetime)
    return secret


def sign_in_link_valid(*, secret: str) -> bool:
    """Whether the link would sign somebody in now; uses nothing up."""
    now = timezone.now()
    return SignInLink.objects.filter(
        digest=digest(secret), used_at=None, expires_at__gt=now, user__is_active=True
    ).exists()


def sign_in_links_drop(*, user: User) -> None:
    """End every link that was handed out for him and not used."""
    SignInLink.objects.filter(user=user, used_at=None).delete()


def sign_in_link_use(*, secret: str) -> User:
    """Use the link up and return its person. LinkUsed if it is unknown, too old, or used."""
    now = timezone.now()
    with transaction.atomic():
        # Columns of this table only: a condition on the person would become a subquery, which PostgreSQL does not look
        # at again after waiting for another's update.
        links = SignInLink.objects.filter(digest=digest(secret), used_at=None, expires_at__gt=now)
        if not links.update(used_at=now):
            raise LinkUsed
        user = SignInLink.objects.select_related("user").get(digest=digest(secret)).user
        if not user.is_active:
            raise LinkUsed
        _record(user, "account.sign_in")
    return user


def password_set(*, user: User, password: str) -> None:
    """Another password, which the caller has checked; every session and unused sign-in link ends with the old one."""
    with transaction.atomic():
        user.set_password(password)
        user.save(update_fields=["password"])
        sign_in_links_drop(user=user)
        _record(user, "account.password")


def _record(user: User, action: str) -> None:
    """An audit row in each of his organizations."""
    for membership in user.memberships.all():
        audit.record(
            actor=actor_of(user=user, membership=membership),
            organization_id=membership.organization_id,
            action=action,
            target=user.email,
        )


def actor_of(*, user: User, membership: Membership) -> Actor:
    """The signed-in person, acting in the organization of that membership."""
    return Actor(
        organization_id=membership.organization_id, role=Role(membership.role), label=user.label, user_id=user.pk
    )


def actor_for_user(*, user: User, organization: str = "") -> Actor:
    """The signed-in person, acting in the organization of that slug (default: his oldest). NotFound if not a member."""
    memberships = user.memberships.order_by("created_at", "pk")
    if organization:
        memberships = memberships.filter(organization__slug=organization)
    membership = memberships.first()
    if membership is None:
        raise NotFound("you are not a member of that organization")
    return actor_of(user=user, membership=membership)


def actor_for_sandbox(*, user: User, public_id: str) -> Actor:
    """The signed-in person, acting in the organization of that sandbox. NotFound if he is no member of it."""
    membership = user.memberships.filter(organization__sandboxes__public_id=public_id).first()
    if membership is None:
        raise NotFound(f"there is no sandbox {public_id[:40]!r} for you")
    return actor_of(user=user, membership=membership)


def installation_prepare(*, email: str, organization: str) -> tuple[User, Organization]:
    """The first administrator and organization, made if they are missing. Repeatable."""
    with transaction.atomic():
        user = User.objects.filter(email=email.strip().lower()).first() or User.objects.create_user(email)
        team, made = Organization.objects.get_or_create(slug=organization, defaults={"name": organization.title()})
        _membership, joined = Membership.objects.get_or_create(
            organization=team, user=user, defaults={"role": Role.OWNER}
        )
        if made or joined:
            audit.record(
                actor=SYSTEM, organization_id=team.pk, action="organization.prepare", target=team.slug, owner=user.email
            )
    return user, team
