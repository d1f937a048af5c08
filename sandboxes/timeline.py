"""Writes the timeline of a sandbox inside the transaction of what it tells of, and shows it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sandboxes import audit, events, sentences
from sandboxes.models import Sandbox, TimelineEntry
from sandboxes.permissions import SYSTEM
from sandboxes.states import Move

_OF_ITS_END = (Move.SUSPEND, Move.SUSPENDED, Move.STOP, Move.END)
"""Moves whose cause and actor are those that the row has written down."""


def record_created(*, sandbox: Sandbox) -> None:
    """The first entry."""
    _write(sandbox, text=sentences.created(sandbox), actor=sandbox.creator_name)


def record_move(*, sandbox: Sandbox, move: Move, actor: str, detail: str = "") -> None:
    """An entry for a move that the row has just made."""
    text = sentences.moved(move, sandbox, actor=actor, detail=detail)
    if move in _OF_ITS_END:
        # Who began a stop or suspend is the actor of its end as well.
        who = sandbox.stopped_by or actor
        _write(sandbox, text=text, actor=who, cause=sandbox.stop_cause, detail=sandbox.stop_detail)
    else:
        _write(sandbox, text=text, actor=actor, detail=detail, stages=sandbox.stages if move is Move.READY else {})


_DEADLINE = "Its deadline is now"


def record_happening(*, sandbox: Sandbox, text: str, actor: str = SYSTEM.label, detail: str = "") -> None:
    """An entry for something that left the state as it is."""
    _write(sandbox, text=text, actor=actor, detail=detail)


def record_deadline(*, sandbox: Sandbox, actor: str) -> None:
    """An entry for its deadline. It takes the place of the one before where nothing else has happened since: programs
    extend what they keep alive every few seconds.
    """
    last = sandbox.timeline.order_by("-id").first()
    if last is not None and last.text.startswith(_DEADLINE) and last.actor == actor:
        last.delete()
    _write(sandbox, text=f"{_DEADLINE} {sandbox.stop_at:%Y-%m-%d %H:%M:%S} UTC", actor=actor)


def _write(sandbox: Sandbox, *, text: str, detail: str = "", **fields: Any) -> None:
    entry = TimelineEntry.objects.create(
        sandbox=sandbox, state=sandbox.state, text=text[:1000], detail=detail[:500], **fields
    )
    payload = {**entry_payload(entry, until=None), "sandbox": sandbox.public_id}
    audit.publish(organization_id=sandbox.organization_id, kind="timeline", payload=payload)


def entry_payload(entry: TimelineEntry, *, until: datetime | None) -> dict[str, Any]:
    """An entry as pages and REST show it; `until`: when the state that it began has ended."""
    return {
        "id": entry.pk,
        "at": events.timestamp(entry.at),
        "state": entry.state,
        "text": entry.text,
        "cause": entry.cause or None,
        "actor": entry.actor,
        "detail": entry.detail,
        "stages": entry.stages,
        "duration_seconds": round((until - entry.at).total_seconds(), 3) if until else None,
    }
