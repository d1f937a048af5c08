"""Counts what machines use into the hours' rows: each second once, whoever counts and however often.

A reading moves the sandbox's meter by one conditional UPDATE and adds to the hours in the same transaction: of several
workers one wins, and whoever dies in between has counted nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime

import structlog
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from sandboxes import metering, runtime
from sandboxes.database import in_thread
from sandboxes.metering import Reading
from sandboxes.models import Kind, Sandbox, SandboxState, UsageHour, UsageMeter
from sandboxes.prices import Use, month_of
from vm.api import MachineInfo
from vm.errors import NodeUnreachable

log = structlog.get_logger("atoll.usage")

KEPT_MONTHS = 13
"""Full calendar months of which the hours' rows are kept, so that a month can be compared with the year before."""
ATTEMPTS = 5
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
    for sandbox in Sandbox.objects.filter(machine__in=infos):
        usage_measure(sandbox=sandbox, info=infos[sandbox.machine], at=at)


def usage_measure(*, sandbox: Sandbox, info: MachineInfo, at: float | None = None) -> None:
    """Count what its machine has used until `info`, which the node answered at `at` (now). Repeatable.

    To be called with the answer that ends or suspends a machine, or its last seconds are lost with it.
    """
    this = metering.read(info, at=time.time() if at is None else at, keeps_disk=sandbox.kind == Kind.WORKSPACE)
    for _ in range(ATTEMPTS):
        meter = _meter(sandbox)
        last = Reading(meter.measured_at.timestamp(), meter.in_memory, meter.cpu_seconds, meter.disk_bytes)
        if metering.overtaken(last, this, info) or _goes_on(last, this):
            return
        # Read again with a first one who was quicker: what is left to count then is little or nothing.
        if _advance(sandbox, meter, last, this, info):
            return


def _meter(sandbox: Sandbox) -> UsageMeter:
    # A machine that was never read has used nothing before its sandbox was made.
    return UsageMeter.objects.get_or_create(sandbox=sandbox, defaults={"measured_at": sandbox.created_at})[0]


def _goes_on(last: Reading, this: Reading) -> bool:
    if this.in_memory:
        return last.in_memory and this.at - last.at < PAUSE_RUNNING
    return not last.in_memory and this.cpu_seconds == last.cpu_seconds and this.at - last.at < PAUSE_RESTING


def _advance(sandbox: Sandbox, meter: UsageMeter, last: Reading, this: Reading, info: MachineInfo) -> bool:
    known = metering.settled(last, this, info)
    came_up = None if sandbox.state in _BOOTING else sandbox.started_at
    ready_at = None if came_up is None else came_up.timestamp()
    used = metering.use_between(last, this, info, ready_at=ready_at)
    with transaction.atomic():
        moved = UsageMeter.objects.filter(pk=meter.pk, turn=meter.turn).update(
            turn=F("turn") + 1,
            measured_at=datetime.fromtimestamp(known.at, UTC),
            in_memory=known.in_memory,
            cpu_seconds=known.cpu_seconds,
            disk_bytes=known.disk_bytes,
        )
        if moved:
            for hour, use in used.items():
                _add(sandbox, hour, use)
    return bool(moved)


def _add(sandbox: Sandbox, hour: datetime, use: Use) -> None:
    # Nobody else is here for this sandbox: the meter's row is locked until the commit.
    added = UsageHour.objects.filter(sandbox=sandbox, hour=hour).update(
        cpu_seconds=F("cpu_seconds") + use.cpu_seconds,
        memory_mib_seconds=F("memory_mib_seconds") + use.memory_mib_seconds,
        disk_byte_seconds=F("disk_byte_seconds") + use.disk_byte_seconds,
    )
    if not added:
        UsageHour.objects.create(
            organization_id=sandbox.organization_id,
            sandbox=sandbox,
            hour=hour,
            cpu_seconds=use.cpu_seconds,
            memory_mib_seconds=use.memory_mib_seconds,
            disk_byte_seconds=use.disk_byte_seconds,
        )


def usage_prune(*, now: datetime | None = None) -> None:
    """Drop the hours of months too old to be asked for."""
    begin, _end = month_of(now or timezone.now())
    months = begin.year * 12 + begin.month - 1 - KEPT_MONTHS
    UsageHour.objects.filter(hour__lt=begin.replace(year=months // 12, month=months % 12 + 1)).delete()
