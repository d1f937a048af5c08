"""Calls into an exposed sandbox: one that is suspended is resumed for whoever comes, and coming counts as use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sandboxes.errors import NotRunning
from sandboxes.models import Sandbox, SandboxState
from sandboxes.permissions import SYSTEM, AnyActor
from sandboxes.services import streams, suspension
from sandboxes.services.activity import activity
from sandboxes.services.streams import GuestCall
from sandboxes.states import PAUSED

READY_SECONDS = 60.0
"""For which somebody waits for a machine that is started or resumed."""
COMING = frozenset({SandboxState.QUEUED, SandboxState.STARTING, SandboxState.RESUMING})


async def guest(
    *,
    sandbox: Sandbox,
    method: str,
    params: Mapping[str, Any] | None = None,
    more: bool = False,
    actor: AnyActor = SYSTEM,
    why: str,
) -> GuestCall:
    """A call to its guest; `why` completes "resumed by ada: ". NotRunning, Unavailable, QuotaExceeded.

    Without an `actor` it has been decided by an exposure that the visitor may.
    """
    activity.note(sandbox)
    try:
        return await streams.guest_call(sandbox=sandbox, method=method, params=params, actor=actor, more=more)
    except NotRunning:
        if sandbox.state in PAUSED:
            await suspension.sandbox_wake(sandbox=sandbox, actor=actor, why=why)
        elif sandbox.state not in COMING:
            raise
    await streams.guest_ready(sandbox=sandbox, timeout=READY_SECONDS)
    return await streams.guest_call(sandbox=sandbox, method=method, params=params, actor=actor, more=more)
