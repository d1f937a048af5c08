"""Counts what volumes and snapshots take on disk into the hours' rows: each second once, whoever counts.

As in usage.py: a reading moves the row and adds to the hours in one transaction, which holds the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import batched

import structlog
from django.db import transaction
from django.utils import timezone

from sandboxes import runtime
from sandboxes.database import in_thread
from sandboxes.metering import hours_between
from sandboxes.models import Volume, VolumeHour, VolumeState
from sandboxes.services.usage import BATCH
from vm.api import VolumeInfo
from vm.errors import VmError

log = structlog.get_logger("atoll.usage")

PAUSE = 60.0
"""Seconds for which one that takes what it took is not read again."""


async def volumes_collect() -> None:
    """Read every volume once. Repeatable, also beside itself; does nothing while the node does not answer."""
    try:
        infos = await runtime.node().volume_list()
    except VmError as error:
        log.warning("the node does not say what volumes take", error=str(error))
        return
    await in_thread(_measure_all, {info.volume: info for info in infos}, timezone.now())


def _measure_all(infos: Mapping[str, VolumeInfo], now: datetime) -> None:
    """Count what each has taken until `now`, when the node answered. Repeatable: each second counts once."""
    for disks in batched(infos, BATCH):
        # What is deleted costs nothing more: nobody can take it away sooner than it goes by itself
        rows = Volume.objects.filter(disk__in=disks, state=VolumeState.READY)
        news = [volume.pk for volume in rows if _is_news(volume, infos[volume.disk], now)]
        if not news:
            continue
        with transaction.atomic():
            # Read again behind the lock: what somebody else has counted meanwhile is no news
            locked = rows.filter(pk__in=news).select_for_update(no_key=True).order_by("pk")
            moved = [volume for volume in locked if _is_news(volume, infos[volume.disk], now)]
            _add(moved, now)
            for volume in moved:
                info = infos[volume.disk]
                volume.measured_at, volume.allocated, volume.flattened = now, info.allocated, info.flattened
            Volume.objects.bulk_update(moved, ["measured_at", "allocated", "flattened"])


def _is_news(volume: Volume, info: VolumeInfo, now: datetime) -> bool:
    age = (now - _since(volume)).total_seconds()
    same = (volume.allocated, volume.flattened) == (info.allocated, info.flattened)
    return age > 0 and not (same and age < PAUSE)


def _since(volume: Volume) -> datetime:
    return volume.measured_at or volume.created_at


def _add(volumes: Sequence[Volume], now: datetime) -> None:
    taken = {
        (volume.pk, hour): VolumeHour(
            organization_id=volume.organization_id, volume=volume, hour=hour, byte_seconds=volume.allocated * seconds
        )
        for volume in volumes
        for hour, seconds in hours_between(_since(volume).timestamp(), now.timestamp())
    }
    there = VolumeHour.objects.filter(volume__in=volumes, hour__in={hour for _volume, hour in taken})
    known = [row for row in there if (row.volume_id, row.hour) in taken]
    for row in known:
        row.byte_seconds += taken.pop((row.volume_id, row.hour)).byte_seconds
    VolumeHour.objects.bulk_create(taken.values(), batch_size=BATCH)
    VolumeHour.objects.bulk_update(known, ["byte_seconds"])
