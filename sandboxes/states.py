"""Which moves a sandbox's state may make, as data."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

from django.utils import timezone

from sandboxes.models.sandbox import Kind, Sandbox, SandboxState

S = SandboxState
ACTIVE = frozenset({S.QUEUED, S.STARTING, S.RUNNING, S.SUSPENDING, S.RESUMING, S.STOPPING})
"""States that count towards the quota: the machine exists or is about to."""
ALIVE = (ACTIVE | {S.SUSPENDED}) - {S.STOPPING}
"""States from which it goes on by itself or can be resumed."""
ENDED = frozenset({S.STOPPING, S.STOPPED, S.DELETED})
"""States in which nothing of it runs on."""
PAUSED = frozenset({S.SUSPENDING, S.SUSPENDED})
"""States in which it does not run and will not by itself, but can."""
RESTORABLE_FOR = timedelta(days=1)
"""How long the disk of a deleted workspace is kept."""


class Move(StrEnum):
    """What can happen to a sandbox's state."""

    BOOT = "boot"  # the host began to start the machine
    READY = "ready"  # the guest answers
    SUSPEND = "suspend"  # somebody or something wants its memory saved and its machine ended
    SUSPENDED = "suspended"  # its memory is saved
    RUN_ON = "run_on"  # its memory could not be saved: it never stopped running
    RESUME = "resume"  # a suspended one is wanted again
    PUT_OFF = "put_off"  # it could not be resumed now, and stays as it was
    STOP = "stop"  # somebody or something wants it ended
    END = "end"  # the machine is gone
    START = "start"  # a stopped workspace is wanted again
    DELETE = "delete"  # the row is hidden; the disk of a workspace goes a day later
    RESTORE = "restore"  # a deleted workspace is wanted back


MOVES: dict[Move, tuple[frozenset[SandboxState], SandboxState]] = {
    Move.BOOT: (frozenset({S.QUEUED}), S.STARTING),
    Move.READY: (frozenset({S.QUEUED, S.STARTING, S.RESUMING}), S.RUNNING),
    Move.SUSPEND: (frozenset({S.RUNNING}), S.SUSPENDING),
    # From RUNNING too: a suspend whose outcome nobody heard may have been given up too early.
    Move.SUSPENDED: (frozenset({S.RUNNING, S.SUSPENDING}), S.SUSPENDED),
    Move.RUN_ON: (frozenset({S.SUSPENDING}), S.RUNNING),
    Move.RESUME: (frozenset({S.SUSPENDED}), S.RESUMING),
    Move.PUT_OFF: (frozenset({S.RESUMING}), S.SUSPENDED),
    Move.STOP: (ALIVE, S.STOPPING),
    Move.END: (ALIVE | {S.STOPPING}, S.STOPPED),
    Move.START: (frozenset({S.STOPPED}), S.QUEUED),
    Move.DELETE: (frozenset({S.STOPPED}), S.DELETED),
    Move.RESTORE: (frozenset({S.DELETED}), S.STOPPED),
}


def sources(move: Move) -> frozenset[SandboxState]:
    """The states from which the move may be made."""
    return MOVES[move][0]


def target(move: Move) -> SandboxState:
    """The state to which the move leads."""
    return MOVES[move][1]


def can_start_again(kind: str) -> bool:
    """Whether a stopped one has kept its disk."""
    return kind == Kind.WORKSPACE


def restorable_until(sandbox: Sandbox) -> datetime | None:
    """Until when a deleted workspace can be brought back; None if it cannot."""
    if sandbox.state != S.DELETED or not can_start_again(sandbox.kind) or sandbox.machine_removed:
        return None
    until = sandbox.deleted_at + RESTORABLE_FOR if sandbox.deleted_at else None
    return until if until and until > timezone.now() else None


def next_step(sandbox: Sandbox) -> str:
    """What brings it back: "resume", "start", "restore", or nothing."""
    if sandbox.state == S.SUSPENDED:
        return "resume"
    if sandbox.state == S.STOPPED and can_start_again(sandbox.kind):
        return "start"
    return "restore" if restorable_until(sandbox) else ""
