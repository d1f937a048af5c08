"""Reads of sandboxes, within the actor's organization."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from django.db.models import Q
from django.utils import timezone

from sandboxes import permissions, states
from sandboxes.errors import NotFound
from sandboxes.models import Kind, Sandbox, SandboxState
from sandboxes.permissions import Actor

SHOWN_FOR = timedelta(days=1)
"""How long a stopped sandbox stays listed; a workspace stays until it is deleted."""


def sandbox_get(*, actor: Actor, public_id: str, action: str = "sandbox.view", restorable: bool = False) -> Sandbox:
    """The sandbox, for an actor who may do `action` with it. NotFound, also across organizations; Forbidden.

    `restorable`: also a deleted one, as long as it can be brought back.
    """
    sandbox = Sandbox.objects.filter(public_id=public_id, organization_id=actor.organization_id).first()
    gone = sandbox is not None and sandbox.state == SandboxState.DELETED
    if sandbox is None or (gone and not (restorable and states.restorable_until(sandbox))):
        raise NotFound(f"there is no sandbox {public_id[:40]!r} in this organization")
    permissions.require(actor, action, sandbox.organization_id)
    return sandbox


def sandbox_list(
    *, actor: Actor, active: bool = False, kind: str = "", labels: Mapping[str, str] | None = None, limit: int = 200
) -> list[Sandbox]:
    """The organization's sandboxes, newest first: active ones, kept workspaces, and what stopped within a day."""
    permissions.require(actor, "sandbox.view", actor.organization_id)
    rows = Sandbox.objects.filter(organization_id=actor.organization_id).exclude(state=SandboxState.DELETED)
    if active:
        rows = rows.filter(state__in=states.ACTIVE)
    else:
        rows = rows.exclude(Q(state=SandboxState.STOPPED, kind=Kind.SANDBOX, stopped_at__lt=timezone.now() - SHOWN_FOR))
    if kind:
        rows = rows.filter(kind=kind)
    found = rows.order_by("-created_at")
    if not labels:
        return list(found[:limit])
    # In Python, because a key may hold any character and each database has another syntax for JSON paths.
    matching = (row for row in found if all(row.labels.get(key) == value for key, value in labels.items()))
    return [row for row, _ in zip(matching, range(limit), strict=False)]


def sandbox_list_deleted(*, actor: Actor) -> list[Sandbox]:
    """The deleted workspaces that can still be restored, last deleted first."""
    permissions.require(actor, "sandbox.view", actor.organization_id)
    rows = Sandbox.objects.filter(
        organization_id=actor.organization_id,
        state=SandboxState.DELETED,
        kind=Kind.WORKSPACE,
        machine_removed=False,
        deleted_at__gt=timezone.now() - states.RESTORABLE_FOR,
    )
    return list(rows.order_by("-deleted_at")[:200])
