"""Organizations: made by a person who becomes their owner, renamed by owners and administrators."""

from __future__ import annotations

import re

from django.db import IntegrityError, transaction

from sandboxes import audit, permissions, quotas
from sandboxes.errors import Conflict, Invalid
from sandboxes.models import Membership, Organization, Role, User
from sandboxes.permissions import Actor
from sandboxes.services.accounts import actor_of

SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")


def organization_create(*, user: User, slug: str, name: str) -> Organization:
    """A new organization whose owner is `user`.

    Invalid for a malformed slug or name, Conflict if the slug is taken, QuotaExceeded for somebody who owns many.
    """
    if not SLUG.fullmatch(slug):
        raise Invalid("a slug has 1 to 40 of a-z, 0-9 and inner hyphens", field="slug")
    _check_name(name)
    quotas.check_owned(owned=user.memberships.filter(role=Role.OWNER).count())
    try:
        with transaction.atomic():
            organization = Organization.objects.create(slug=slug, name=name.strip())
            membership = Membership.objects.create(organization=organization, user=user, role=Role.OWNER)
            audit.record(
                actor=actor_of(user=user, membership=membership),
                organization_id=organization.pk,
                action="organization.create",
                target=slug,
            )
    except IntegrityError:
        raise Conflict(f"the slug {slug!r} is taken", field="slug") from None
    return organization


def organization_rename(*, actor: Actor, name: str) -> Organization:
    """Another name for the actor's organization; its slug stays."""
    permissions.require(actor, "organization.edit", actor.organization_id)
    _check_name(name)
    with transaction.atomic():
        organization = Organization.objects.get(pk=actor.organization_id)
        before, organization.name = organization.name, name.strip()
        organization.save(update_fields=["name"])
        audit.record(
            actor=actor,
            organization_id=organization.pk,
            action="organization.rename",
            target=organization.slug,
            name=organization.name,
            before=before,
        )
    return organization


def _check_name(name: str) -> None:
    if not 1 <= len(name.strip()) <= 100 or not name.isprintable():
        raise Invalid("an organization's name has 1 to 100 printable characters", field="name")
