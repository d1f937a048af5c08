"""A sandbox's state and what happened to it, in sentences for people; pure."""

from __future__ import annotations

from sandboxes import states
from sandboxes.models.sandbox import Sandbox, SandboxState, StopCause
from sandboxes.states import Move

_ORIGINS = {
    "cold": "Started by a cold boot",
    "clone": "Started from a template's memory",
    "pool": "Started from the ready pool",
    "resume": "Goes on where it was",
    "fork": "Started from the memory of the sandbox it was forked from",
}


def state_reason(sandbox: Sandbox) -> str:
    """Why it is in its state; empty where the state says it all."""
    if sandbox.state in (SandboxState.STOPPED, SandboxState.STOPPING) and sandbox.stop_cause:
        return _reason(sandbox, "stopped on request", "")
    if sandbox.state in (SandboxState.SUSPENDED, SandboxState.SUSPENDING) and sandbox.stop_cause:
        return _reason(sandbox, "suspended on request", "suspended because ")
    if sandbox.state == SandboxState.DELETED and (until := states.restorable_until(sandbox)):
        return f"deleted; it can be restored until {until:%Y-%m-%d %H:%M} UTC"
    if sandbox.state == SandboxState.QUEUED and sandbox.queue_position:
        return f"waits for its turn to start (place {sandbox.queue_position})"
    if sandbox.unresponsive:
        return "its agent does not answer at the moment"
    return ""


def _reason(sandbox: Sandbox, on_request: str, otherwise: str) -> str:
    detail = f": {sandbox.stop_detail}" if sandbox.stop_detail else ""
    if sandbox.stop_cause == StopCause.REQUESTED:
        return f"{on_request}{f' by {sandbox.stopped_by}' if sandbox.stopped_by else ''}{detail}"
    return f"{otherwise}{StopCause(sandbox.stop_cause).label}{detail}"


def created(sandbox: Sandbox) -> str:
    """The first sentence of its life."""
    how = f"Forked from {sandbox.forked_from}" if sandbox.forked_from else "Created"
    return f"{how} by {sandbox.creator_name or 'atoll'}"


def moved(move: Move, sandbox: Sandbox, *, actor: str, detail: str = "") -> str:
    """What happened, of a row that has just made the move."""
    because = f": {detail}" if detail else ""
    match move:
        case Move.BOOT:
            return "The host began to start its machine"
        case Move.READY:
            return _ready(sandbox)
        case Move.SUSPEND:
            return _capital(f"being {state_reason(sandbox)}")
        case Move.SUSPENDED:
            return f"{_capital(state_reason(sandbox))}. Its memory and disk are kept: resume it to go on"
        case Move.RUN_ON:
            return f"Could not be suspended and runs on{because}"
        case Move.RESUME:
            return f"Resumed by {actor}{because}"
        case Move.PUT_OFF:
            return f"Could not be resumed and stays suspended{because}"
        case Move.STOP:
            return _capital(f"being stopped: {state_reason(sandbox)}")
        case Move.END:
            return f"{_capital(state_reason(sandbox))}. {_left(sandbox)}"
        case Move.START:
            return f"Started by {actor}"
        case Move.DELETE:
            until = states.restorable_until(sandbox)
            return f"Deleted by {actor}" + (f"; it can be restored until {until:%Y-%m-%d %H:%M} UTC" if until else "")
        case Move.RESTORE:
            return f"Restored by {actor}: its disk is as it was"


def _ready(sandbox: Sandbox) -> str:
    took = f" in {sum(sandbox.stages.values()):.1f} s" if sandbox.stages else ""
    note = f". {_capital(sandbox.note)}" if sandbox.note else ""
    return f"{_ORIGINS.get(sandbox.origin, 'Started')}{took}{note}"


def _left(sandbox: Sandbox) -> str:
    if not states.can_start_again(sandbox.kind):
        return "A sandbox keeps nothing when it stops"
    if sandbox.stop_cause == StopCause.MACHINE_LOST:
        return "Its host does not know its disk either: started again it begins with an empty one"
    if sandbox.stop_cause == StopCause.RECORD_UNREADABLE:
        return "Its disk is kept as it lies; start it once its host reads the record again (the node's log says more)"
    if sandbox.started_at is None:
        return "Its disk is as it was: start it to try again"
    if sandbox.stop_cause == StopCause.RESUME_FAILED:
        return "Its disk is kept as it was when it was suspended: start it to go on from there"
    return "Its disk is kept: start it to go on"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
