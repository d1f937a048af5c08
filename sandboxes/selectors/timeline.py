"""Reads of a sandbox's timeline, within the actor's organization."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sandboxes import permissions, timeline
from sandboxes.models import Sandbox, TimelineEntry
from sandboxes.permissions import Actor

LIMIT = 1000


def timeline_list(*, actor: Actor, sandbox: Sandbox) -> list[dict[str, Any]]:
    """The newest thousand entries as REST shows them, oldest first."""
    permissions.require(actor, "sandbox.view", sandbox.organization_id)
    rows = list(TimelineEntry.objects.filter(sandbox=sandbox).order_by("-id")[:LIMIT])[::-1]
    shown: list[dict[str, Any]] = []
    until: datetime | None = None
    for row, before in zip(reversed(rows), [*reversed(rows[:-1]), None], strict=True):
        # What happens within a state is a moment of it, and neither ends nor begins it
        begins = before is None or before.state != row.state
        shown.append(timeline.entry_payload(row, until=until if begins else None))
        until = row.at if begins else until
    return shown[::-1]
