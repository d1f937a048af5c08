"""Counts what machines use into the hours' rows: each second once, whoever counts and however often.

A reading moves the sandbox's meter behind its lock and adds to the hours in the same transaction: of several workers
one counts it, and whoever dies in between has counted nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import batched

import structlog
from django.db import transaction

from sandboxes import metering, runtime
from sandboxes.database import in_thread
from sandboxes.metering import Reading
from sandboxes.models import Kind, Sandbox, SandboxState, UsageHour, UsageMeter
from sandboxes.prices import Use
from vm.api import MachineInfo
from vm.errors import NodeUnreachable

log = structlog.get_logger("atoll.usage")

KEPT_MONTHS = 13
"""Full calendar months of which the hours' rows are kept, so that a month can be compared with the year before."""
BATCH = 200
"""Sandboxes that are counted in one transaction."""
PAUSE_RUNNING, PAUSE_RESTING = 5.0, 300.0
"""Seconds in which a machine that goes on as it was is not read again: a disk at rest changes nothing."""
_BOOTING = frozenset({SandboxState.QUEUED, SandboxState.STARTING, "resuming"})


async def usage_collect() -> None:
    """Read every machine once. Repeatable, also beside itself; does nothing while the node does not answer."""
    try:
        infos = await runtime.node().machine_list()
    except NodeUnreachable as error:
        log.warning("the node does not answer", error=error.detail)
        return
    await in_thread(_measure_all, {info.machine: info for info in infos}, time.time())


def _measure_all(infos: Mapping[str, MachineInfo], at: float) -> None:
    for machines in batched(infos, BATCH):
        # Those that are not read again for a while cost this one query
        rows = Sandbox.objects.filter(machine__in=machines).select_related("usage_meter")
        _measure([(sandbox, infos[sandbox.machine]) for sandbox in rows], at)


def usage_measure(*, sandbox: Sandbox, info: MachineInfo, at: float | None = None) -> None:
    """Count what its machine has used until `info`, which the node answered at `at` (now). Repeatable.

    To be called with the answer that ends or suspends a machine, or its last seconds are lost with it.
    """
    _measure([(sandbox, info)], time.time() if at is None else at)


def _measure(said: Sequence[tuple[Sandbox, MachineInfo]], at: float) -> None:
    """What the node answered of some sandboxes; as many queries for BATCH of them as for one."""
    wanted = {sandbox.pk: _Wanted(sandbox, info, at) for sandbox, info in said}
    known = {one.sandbox.pk: one.sandbox.usage_meter for one in wanted.values() if _is_read(one.sandbox)}
    _without_news(wanted, known)
    if not wanted:
        return
    # A machine that was never read has used nothing before its sandbox was made.
    never = [UsageMeter(sandbox=one.sandbox, measured_at=one.sandbox.created_at) for one in wanted.values()]
    UsageMeter.objects.bulk_create(
        [meter for meter in never if meter.sandbox_id not in known], ignore_conflicts=True, batch_size=BATCH
    )
    with transaction.atomic():
        # Read again behind the lock: of what somebody else has counted meanwhile little or nothing is left
        rows = UsageMeter.objects.select_for_update(no_key=True).filter(pk__in=wanted).order_by("pk")
        meters = {meter.pk: meter for meter in rows}
        _without_news(wanted, meters)
        used = {pk: _advance(one, meters[pk]) for pk, one in wanted.items() if pk in meters}
        UsageMeter.objects.bulk_update(
            [meters[pk] for pk in used], ["turn", "measured_at", "in_memory", "cpu_seconds", "disk_bytes"]
        )
        _add([(wanted[pk].sandbox, hour, use) for pk, hours in used.items() for hour, use in hours.items()])


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An answer of the node that is to be counted."""

    sandbox: Sandbox
    info: MachineInfo
    at: float

    @property
    def reading(self) -> Reading:
        """What it says."""
        return metering.read(self.info, at=self.at, keeps_disk=self.sandbox.kind == Kind.WORKSPACE)


def _is_read(sandbox: Sandbox) -> bool:
    # Only where the meter came with the row: it is no reason to ask for each
    return "usage_meter" in sandbox._state.fields_cache and sandbox._state.fields_cache["usage_meter"] is not None


def _reading(meter: UsageMeter) -> Reading:
    return Reading(meter.measured_at.timestamp(), meter.in_memory, meter.cpu_seconds, meter.disk_bytes)


def _without_news(wanted: dict[int, _Wanted], meters: Mapping[int, UsageMeter]) -> None:
    """Leave out what is older than the last reading, or says that all goes on as it was."""
    for pk, meter in meters.items():
        last, this = _reading(meter), wanted[pk].reading
        if metering.overtaken(last, this, wanted[pk].info) or _goes_on(last, this):
            del wanted[pk]


def _goes_on(last: Reading, this: Reading) -> bool:
    if this.in_memory:
        return last.in_memory and this.at - last.at < PAUSE_RUNNING
    return not last.in_memory and this.cpu_seconds == last.cpu_seconds and this.at - last.at < PAUSE_RESTING


def _advance(one: _Wanted, meter: UsageMeter) -> Mapping[datetime, Use]:
    """Move the meter on, and what was used in which hour."""
    last, this = _reading(meter), one.reading
    known = metering.settled(last, this, one.info)
    came_up = None if one.sandbox.state in _BOOTING else one.sandbox.started_at
    ready_at = None if came_up is None else came_up.timestamp()
    meter.turn += 1
    meter.measured_at = datetime.fromtimestamp(known.at, UTC)
    meter.in_memory, meter.cpu_seconds, meter.disk_bytes = known.in_memory, known.cpu_seconds, known.disk_bytes
    return metering.use_between(last, this, one.info, ready_at=ready_at)


def _add(used: Sequence[tuple[Sandbox, datetime, Use]]) -> None:
    # Nobody else is here for these sandboxes: their meters' rows are locked until the commit.
    there = UsageHour.objects.filter(
        sandbox__in={sandbox.pk for sandbox, _hour, _use in used}, hour__in={hour for _sandbox, hour, _use in used}
    )
    rows = {(row.sandbox_id, row.hour): row for row in there}
    fresh = []
    for sandbox, hour, use in used:
        row = rows.get((sandbox.pk, hour))
        if row is None:
            row = UsageHour(organization_id=sandbox.organization_id, sandbox=sandbox, hour=hour)
            fresh.append(row)
        row.cpu_seconds += use.cpu_seconds
        row.memory_mib_seconds += use.memory_mib_seconds
        row.disk_byte_seconds += use.disk_byte_seconds
    UsageHour.objects.bulk_create(fresh, batch_size=BATCH)
    UsageHour.objects.bulk_update(rows.values(), ["cpu_seconds", "memory_mib_seconds", "disk_byte_seconds"])
