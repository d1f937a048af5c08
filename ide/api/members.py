"""`/api/v1/members`: who belongs to the organization."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from ninja import Router, Status

from ide.api.schemas import Invited, MemberChange, MemberIn, MemberOut, Problem
from sandboxes import permissions
from sandboxes.config import config
from sandboxes.database import in_thread
from sandboxes.events import timestamp
from sandboxes.models import Membership, Role
from sandboxes.permissions import Actor
from sandboxes.services import members

router = Router(tags=["members"])


def _shown(membership: Membership, actor: Actor) -> dict[str, Any]:
    return {
        "id": membership.pk,
        "email": membership.user.email,
        "name": membership.user.name,
        "role": membership.role,
        "created_at": timestamp(membership.created_at),
        "you": membership.user_id == actor.user_id,
    }


def _all(actor: Actor) -> list[dict[str, Any]]:
    permissions.require(actor, "member.list", actor.organization_id)
    rows = Membership.objects.filter(organization_id=actor.organization_id).select_related("user").order_by("pk")
    return [_shown(row, actor) for row in rows]


@router.get("", response={200: list[MemberOut]})
async def everybody(request: HttpRequest) -> list[dict[str, Any]]:
    """All members, oldest first."""
    return await in_thread(_all, request.auth)  # type: ignore[attr-defined]


@router.post("", response={201: Invited, 400: Problem, 403: Problem, 409: Problem})
async def invite(request: HttpRequest, body: MemberIn) -> Any:
    """Add somebody by his address."""
    actor: Actor = request.auth  # type: ignore[attr-defined]
    membership, secret = await in_thread(members.member_invite, actor=actor, email=body.email, role=Role(body.role))
    link = f"{config()['origin']}/login/{secret}" if secret else None
    return Status(201, {"member": await in_thread(_shown, membership, actor), "sign_in_link": link})


@router.patch("/{member}", response={200: MemberOut, 403: Problem, 404: Problem, 409: Problem})
async def change(request: HttpRequest, member: int, body: MemberChange) -> dict[str, Any]:
    """Give a member another role."""
    actor: Actor = request.auth  # type: ignore[attr-defined]
    membership = await in_thread(members.member_change, actor=actor, member_id=member, role=Role(body.role))
    return await in_thread(_shown, membership, actor)


@router.delete("/{member}", response={204: None, 403: Problem, 404: Problem, 409: Problem})
async def remove(request: HttpRequest, member: int) -> Any:
    """Remove a member, or leave."""
    await in_thread(members.member_remove, actor=request.auth, member_id=member)  # type: ignore[attr-defined]
    return Status(204, None)
