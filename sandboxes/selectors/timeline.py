"""Reads of a sandbox's timeline, within the actor's organization."""

from __future__ import annotations

from typing import Any

from sandboxes import permissions, timeline
from sandboxes.models import Sandbox, TimelineEntry
from sandboxes.permissions import Actor

LIMIT = 1000


def timeline_list(*, actor: Actor, sandbox: Sandbox) -> list[dict[str, Any]]:
    """The newest thousand entries as REST shows them, oldest first."""
    permissions.require(actor, "sandbox.view", sandbox.organization_id)
    rows = list(TimelineEntry.objects.filter(sandbox=sandbox).order_by("-id")[:LIMIT])[::-1]
    ends = [row.at for row in rows[1:]]
    return [timeline.entry_payload(row, until=end) for row, end in zip(rows, [*ends, None], strict=True)]
