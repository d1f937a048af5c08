"""Reads of exposures: for gateways, which ask about all of them, and for people within their organization."""

from __future__ import annotations

from collections.abc import Collection

from django.db.models import Q
from django.utils import timezone

from sandboxes import permissions
from sandboxes.errors import NotFound
from sandboxes.models import Access, Exposure, ExposureKind, Membership, Sandbox, User
from sandboxes.permissions import Actor
from sandboxes.states import ENDED


def exposure_find(*, kind: ExposureKind, name: str = "", gateway_port: int | None = None) -> Exposure | None:
    """The open exposure of that name or port, with its sandbox; for a gateway, which lets nobody in but by these."""
    rows = Exposure.objects.filter(_open(), kind=kind).select_related("sandbox")
    return rows.filter(gateway_port=gateway_port).first() if gateway_port else rows.filter(name=name).first()


def exposures_open(*, keys: Collection[int]) -> set[int]:
    """Which of these are open still."""
    return set(Exposure.objects.filter(_open(), pk__in=keys).values_list("pk", flat=True))


def exposure_list(*, actor: Actor, sandbox: Sandbox) -> list[Exposure]:
    """What is open of a sandbox, newest first; also of a workspace that is stopped."""
    permissions.require(actor, "exposure.view", sandbox.organization_id)
    unexpired = Q(expires_at=None) | Q(expires_at__gt=timezone.now())
    return list(Exposure.objects.filter(unexpired, sandbox=sandbox, closed_at=None).order_by("-created_at", "-pk"))


def exposure_get(*, actor: Actor, sandbox: Sandbox, public_id: str) -> Exposure:
    """One of them. NotFound."""
    found = next((one for one in exposure_list(actor=actor, sandbox=sandbox) if one.public_id == public_id), None)
    if found is None:
        raise NotFound("there is no such exposure of this sandbox")
    return found


def exposure_visited(*, public_id: str, user: User) -> Exposure:
    """The exposure that a signed-in person wants to visit, as a member. NotFound."""
    found = Exposure.objects.filter(_open(), public_id=public_id, access=Access.ORGANIZATION).first()
    if found is None or not exposure_visitor_allowed(organization_id=found.organization_id, user_id=user.pk):
        raise NotFound("there is no such exposed port for you")
    return found


def exposure_visitor_allowed(*, organization_id: int, user_id: int) -> bool:
    """Whether somebody may visit what an organization exposes to its members: any of them."""
    return Membership.objects.filter(organization_id=organization_id, user_id=user_id, user__is_active=True).exists()


def _open() -> Q:
    unexpired = Q(expires_at=None) | Q(expires_at__gt=timezone.now())
    # The states besides: a row that was missed when its sandbox ended opens nothing
    return Q(unexpired, ~Q(sandbox__state__in=ENDED), closed_at=None)
