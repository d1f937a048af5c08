"""Events: written as rows with the change they tell of, tailed by each web process and fanned out to its pages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from weakref import WeakKeyDictionary

from sandboxes import audit, egress, sentences, states
from sandboxes.database import in_thread
from sandboxes.models import Checkpoint, EgressDenial, Event, Sandbox, Volume
from sandboxes.selectors.volumes import restorable_until
from vm import background
from vm.egress.journal import Kind

POLL = 0.25
SETTLING = 5.0
"""Seconds for which ids are looked at again: on PostgreSQL a lower id may become visible after a higher one."""
BACKLOG = 1000
"""Things one listener may have outstanding; beyond that it is told to ask for everything again."""

type Payload = dict[str, Any]


def timestamp(moment: datetime | None) -> str | None:
    """ISO 8601 in UTC with milliseconds, as every API of ours writes times."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z" if moment else None


def sandbox_payload(sandbox: Sandbox) -> Payload:
    """A sandbox as pages and REST show it (docs/api.md)."""
    return {
        "id": sandbox.public_id,
        "name": sandbox.name,
        "kind": sandbox.kind,
        "state": sandbox.state,
        "state_reason": sentences.state_reason(sandbox),
        "queue_position": sandbox.queue_position,
        "unresponsive": sandbox.unresponsive,
        "region": sandbox.region,
        "memory_mb": sandbox.memory_mb,
        "vcpus": sandbox.vcpus,
        "disk_gib": sandbox.disk_gib,
        "labels": sandbox.labels,
        "session": sandbox.session,
        "stages": sandbox.stages,
        "created_at": timestamp(sandbox.created_at),
        "started_at": timestamp(sandbox.started_at),
        "stopped_at": timestamp(sandbox.stopped_at),
        "stop_at": timestamp(sandbox.stop_at),
        "stop_reason": sandbox.stop_cause or None,
        "stop_detail": sandbox.stop_detail,
        "stopped_by": sandbox.stopped_by or None,
        "creator": sandbox.creator_name,
        "origin": sandbox.origin or None,
        "note": sandbox.note,
        "next_step": states.next_step(sandbox),
        "idle_minutes": sandbox.idle_minutes,
        "checkpoint_minutes": sandbox.checkpoint_minutes,
        "active_at": timestamp(sandbox.active_at),
        "deleted_at": timestamp(sandbox.deleted_at),
        "restorable_until": timestamp(states.restorable_until(sandbox)),
        "forked_from": sandbox.forked_from or None,
        "root": sandbox.boots_from or None,
        "network_version": sandbox.network_version,
    }


def denial_payload(sandbox: Sandbox, denial: EgressDenial) -> Payload:
    """A denial, an alert, or what waits for an answer, as pages and REST show it; `sandbox` with its organization."""
    remedy = egress.remedy_of(
        host=denial.host,
        port=denial.port,
        rule=denial.rule,
        allow_net=sandbox.allow_net,
        deny_net=sandbox.deny_net,
        organization=sandbox.organization.deny_net,
    )
    return {
        "id": denial.pk,
        "kind": denial.kind,
        "sandbox": sandbox.public_id,
        "at": timestamp(denial.at),
        "host": denial.host,
        "port": denial.port,
        "pattern": egress.pattern_of(denial.host, denial.port) if denial.host else "",
        "rule": denial.rule,
        "detail": denial.detail,
        "remedy": remedy if denial.host and denial.kind != Kind.ALERT else "",
        "waits_until": timestamp(denial.waits_until),
    }


def publish_sandbox(sandbox: Sandbox) -> None:
    """Tell the organization's pages of the row as it is now; in the transaction of its change."""
    audit.publish(organization_id=sandbox.organization_id, kind="sandbox", payload=sandbox_payload(sandbox))


def volume_payload(volume: Volume, *, gone: bool = False) -> Payload:
    """A volume or snapshot as pages and REST show it; `gone`: there is nothing left of it."""
    return {
        "id": volume.public_id,
        "kind": volume.kind,
        "slug": volume.slug,
        "state": "removed" if gone else volume.state,
        "region": volume.region,
        "capacity": volume.capacity,
        "allocated": volume.allocated,
        "flattened": volume.flattened,
        "bootable": volume.bootable,
        "base": _named(volume.base),
        "source": _named(volume.source),
        "taken_of": volume.taken_of or None,
        "memory_mb": volume.memory_mb,
        "creator": volume.creator_name,
        "created_at": timestamp(volume.created_at),
        "deleted_at": timestamp(volume.deleted_at),
        "restorable_until": None if gone else timestamp(restorable_until(volume)),
    }


def checkpoint_payload(checkpoint: Checkpoint) -> Payload:
    """A checkpoint as pages and REST show it; with its volume."""
    volume = checkpoint.volume
    return {
        "id": volume.public_id,
        "cause": checkpoint.cause,
        "note": checkpoint.note,
        "created_at": timestamp(volume.created_at),
        "by": volume.creator_name,
        "allocated": volume.allocated,
        "flattened": volume.flattened,
        "capacity": volume.capacity,
    }


def _named(volume: Volume | None) -> Payload | None:
    return {"id": volume.public_id, "slug": volume.slug} if volume else None


def publish_volume(volume: Volume, *, gone: bool = False) -> None:
    """Tell the organization's pages of the row as it is now; in the transaction of its change."""
    audit.publish(organization_id=volume.organization_id, kind="volume", payload=volume_payload(volume, gone=gone))


class _Listener:
    """What one subscriber has not taken yet: the newest event of each thing, in order of arrival."""

    def __init__(self, organization_id: int) -> None:
        self.organization_id = organization_id
        self.waiting: dict[tuple[str, str], Payload] = {}
        self.some = asyncio.Event()

    def put(self, event: Payload) -> None:
        key = (event["kind"], str(event["payload"].get("id", "")))
        self.waiting.pop(key, None)
        if len(self.waiting) >= BACKLOG:
            self.waiting.clear()
            key, event = ("ready", ""), {"cursor": event["cursor"], "kind": "ready", "payload": {}}
        self.waiting[key] = event
        self.some.set()


class _Tail:
    """One event loop's poller; runs only while somebody listens."""

    def __init__(self) -> None:
        self.listeners: set[_Listener] = set()
        self._seen: dict[int, float] = {}
        self._low = 0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Make sure the poller runs; the newest cursor."""
        if self._task is None or self._task.done():
            newest = await in_thread(_newest)
            if self._task is None or self._task.done():
                self._low = newest[0] - 1 if newest else await in_thread(_last_id)
                self._seen = dict.fromkeys(newest, time.monotonic())
                self._task = background.spawn(self._run(), name="event tail")
        return max(self._seen, default=self._low)

    async def _run(self) -> None:
        while self.listeners:
            await asyncio.sleep(POLL)
            try:
                rows = await in_thread(_after, self._low, set(self._seen))
            except Exception:
                background.log.exception("events could not be read")
                await asyncio.sleep(2)
                continue
            now = time.monotonic()
            for identifier, organization_id, kind, payload in rows:
                self._seen[identifier] = now
                for listener in self.listeners:
                    if listener.organization_id == organization_id:
                        listener.put({"cursor": identifier, "kind": kind, "payload": payload})
            settled = [i for i, seen in self._seen.items() if now - seen > SETTLING]
            if settled:
                self._low = max(self._low, *settled)
                self._seen = {i: seen for i, seen in self._seen.items() if i > self._low}


def _last_id() -> int:
    last = Event.objects.order_by("-id").values_list("id", flat=True).first()
    return last or 0


def _newest() -> list[int]:
    return sorted(Event.objects.order_by("-id").values_list("id", flat=True)[:200])


def _after(low: int, seen: set[int]) -> list[tuple[int, int, str, Payload]]:
    fresh = [
        i for i in Event.objects.filter(id__gt=low).order_by("id").values_list("id", flat=True)[:5000] if i not in seen
    ]
    rows = Event.objects.filter(id__in=fresh[:500]).order_by("id")
    return list(rows.values_list("id", "organization_id", "kind", "payload"))


_tails: WeakKeyDictionary[asyncio.AbstractEventLoop, _Tail] = WeakKeyDictionary()


async def subscribe(organization_id: int) -> AsyncIterator[Payload]:
    """Everything that happens in the organization, as `{"cursor", "kind", "payload"}`.

    The first is of kind `ready`: what is read from the database after it cannot miss a change. A listener far
    behind gets another `ready` in place of what it missed. Several changes of one sandbox may come as the last of them.
    """
    tail = _tails.setdefault(asyncio.get_running_loop(), _Tail())
    listener = _Listener(organization_id)
    tail.listeners.add(listener)
    try:
        yield {"cursor": await tail.start(), "kind": "ready", "payload": {}}
        while True:
            await listener.some.wait()
            listener.some.clear()
            while listener.waiting:
                yield listener.waiting.pop(next(iter(listener.waiting)))
    finally:
        tail.listeners.discard(listener)
