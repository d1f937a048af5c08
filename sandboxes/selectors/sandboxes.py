"""Reads of sandboxes, within the actor's organization."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from datetime import timedelta
from itertools import islice
from typing import cast

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
    """The organization's sandboxes, newest first: all that are active or kept, and the `limit` that stopped last."""
    permissions.require(actor, "sandbox.view", actor.organization_id)
    rows = Sandbox.objects.filter(organization_id=actor.organization_id)
    if kind:
        rows = rows.filter(kind=kind)
    over = Q(state=SandboxState.STOPPED, kind=Kind.SANDBOX)
    # Of each of them something is on a host, which few of all rows have
    there = rows.filter(machine_removed=False).exclude(over).exclude(state=SandboxState.DELETED)
    if active:
        there = there.filter(state__in=states.ACTIVE)
    # In Python, because a key may hold any character and each database has another syntax for JSON paths.
    wanted = (labels or {}).items()
    found = {row.pk: row for row in there if wanted <= row.labels.items()}
    if not active:
        # After the others: what stops in between is found twice rather than not at all
        ended = rows.filter(over, stopped_at__gte=timezone.now() - SHOWN_FOR).order_by("-stopped_at")
        # Closed, because a read that is left open would keep its connection's view of the database
        with closing(cast(Generator[Sandbox], (ended if wanted else ended[:limit]).iterator())) as newest:
            matching = (row for row in newest if wanted <= row.labels.items())
            found |= {row.pk: row for row in islice(matching, limit)}
    return sorted(found.values(), key=lambda row: row.created_at, reverse=True)


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
