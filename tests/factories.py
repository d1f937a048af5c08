"""Builders of rows for tests, one per model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Imported late below: pytest loads this module before Django is set up.
    from sandboxes.models import Organization, Sandbox, User
    from sandboxes.permissions import Actor


@dataclass(frozen=True, slots=True)
class Team:
    """An organization and an actor of each role."""

    organization: Organization
    owner: Actor
    admin: Actor
    member: Actor
    viewer: Actor


def user(email: str) -> User:
    from sandboxes.models import User

    return User.objects.create_user(email)


def actor(organization: Organization, role: str) -> Actor:
    """A new person with that role, acting there."""
    from sandboxes.models import Membership
    from sandboxes.services.accounts import actor_of

    person = user(f"{role}@{organization.slug}.example")
    membership = Membership.objects.create(organization=organization, user=person, role=role)
    return actor_of(user=person, membership=membership)


def team(slug: str) -> Team:
    from sandboxes.models import Organization

    organization = Organization.objects.create(slug=slug, name=slug.title())
    roles = {role: actor(organization, role) for role in ("owner", "admin", "member", "viewer")}
    return Team(organization, **roles)


def sandbox(team: Team, **wanted: Any) -> Sandbox:
    """A queued sandbox of the team's member, as a front door makes it."""
    from sandboxes.services.creation import Wanted, sandbox_create

    return sandbox_create(wanted=Wanted(**wanted), actor=team.member)


def row(team: Team, **fields: Any) -> Sandbox:
    """A sandbox row in any state, made past the services."""
    from django.utils import timezone

    from sandboxes import ids
    from sandboxes.models import Sandbox

    defaults = {
        "public_id": ids.sandbox_id("loc"),
        "organization": team.organization,
        "region": "loc",
        "memory_mb": 1280,
        "vcpus": 2,
        "disk_gib": 10,
        "machine": ids.machine_id(),
        "state_since": timezone.now(),
    }
    return Sandbox.objects.create(**{**defaults, **fields})
