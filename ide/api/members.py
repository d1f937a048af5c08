"""`/api/v1/members`: who belongs to the organization."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from ninja import Router, Status

from ide.api.schemas import Invited, MemberChange, MemberIn, MemberOut, Problem
from sandboxes.config import config
from sandboxes.database import in_thread
from sandboxes.events import timestamp
from sandboxes.models import Membership, Role
from sandboxes.permissions import Actor
from sandboxes.selectors.members import member_list
from sandboxes.services import members

router = Router(tags=["members"])


def _all(actor: Actor) -> list[dict[str, Any]]:
    return [
        {
            "id": membership.pk,
            "email": membership.user.email,
            "name": membership.user.name,
            "role": membership.role,
            "created_at": timestamp(membership.created_at),
            "you": membership.user_id == actor.user_id,
            "waiting": membership.user.waiting,
            "invited_until": timestamp(until) if membership.user.waiting else None,
        }
        for membership, until in member_list(actor=actor)
    ]


def _shown(actor: Actor, membership: Membership) -> dict[str, Any]:
    return next(member for member in _all(actor) if member["id"] == membership.pk)


async def _invited(actor: Actor, membership: Membership, secret: str | None) -> Any:
    link = f"{config()['origin']}/login/{secret}" if secret else None
    return Status(201, {"member": await in_thread(_shown, actor, membership), "sign_in_link": link})


@router.get("", response={200: list[MemberOut]})
async def everybody(request: HttpRequest) -> list[dict[str, Any]]:
    """All members, oldest first."""
    return await in_thread(_all, request.auth)  # type: ignore[attr-defined]


@router.post("", response={201: Invited, 400: Problem, 403: Problem, 409: Problem})
async def invite(request: HttpRequest, body: MemberIn) -> Any:
    """Add somebody by his address."""
    actor: Actor = request.auth  # type: ignore[attr-defined]
    membership, secret = await in_thread(members.member_invite, actor=actor, email=body.email, role=Role(body.role))
    return await _invited(actor, membership, secret)


@router.post("/{member}/invitation", response={201: Invited, 403: Problem, 404: Problem, 409: Problem})
async def invite_again(request: HttpRequest, member: int) -> Any:
    """A new link for a member who has never signed in; the one before ends."""
    actor: Actor = request.auth  # type: ignore[attr-defined]
    membership, secret = await in_thread(members.invitation_renew, actor=actor, member_id=member)
    return await _invited(actor, membership, secret)


@router.patch("/{member}", response={200: MemberOut, 403: Problem, 404: Problem, 409: Problem})
async def change(request: HttpRequest, member: int, body: MemberChange) -> dict[str, Any]:
    """Give a member another role."""
    actor: Actor = request.auth  # type: ignore[attr-defined]
    membership = await in_thread(members.member_change, actor=actor, member_id=member, role=Role(body.role))
    return await in_thread(_shown, actor, membership)


@router.delete("/{member}", response={204: None, 403: Problem, 404: Problem, 409: Problem})
async def remove(request: HttpRequest, member: int) -> Any:
    """Remove a member, or leave."""
    await in_thread(members.member_remove, actor=request.auth, member_id=member)  # type: ignore[attr-defined]
    return Status(204, None)
