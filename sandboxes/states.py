"""Which moves a sandbox's state may make, as data."""

from __future__ import annotations

from enum import StrEnum

from sandboxes.models.sandbox import Kind, SandboxState

S = SandboxState
ACTIVE = frozenset({S.QUEUED, S.STARTING, S.RUNNING, S.STOPPING})
"""States that count towards the quota: the machine exists or is about to."""


class Move(StrEnum):
    """What can happen to a sandbox's state."""

    BOOT = "boot"  # the host began to start the machine
    READY = "ready"  # the guest answers
    STOP = "stop"  # somebody or something wants it ended
    END = "end"  # the machine is gone
    START = "start"  # a stopped workspace is wanted again
    DELETE = "delete"  # the row is hidden, the disk goes


MOVES: dict[Move, tuple[frozenset[SandboxState], SandboxState]] = {
    Move.BOOT: (frozenset({S.QUEUED}), S.STARTING),
    Move.READY: (frozenset({S.QUEUED, S.STARTING}), S.RUNNING),
    Move.STOP: (frozenset({S.QUEUED, S.STARTING, S.RUNNING}), S.STOPPING),
    Move.END: (frozenset({S.QUEUED, S.STARTING, S.RUNNING, S.STOPPING}), S.STOPPED),
    Move.START: (frozenset({S.STOPPED}), S.QUEUED),
    Move.DELETE: (frozenset({S.STOPPED}), S.DELETED),
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
