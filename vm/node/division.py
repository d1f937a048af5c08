"""Divides the disks of a machine between it and its fork: each goes on in layers of its own over what they were.

What goes on is written down before it does, as in snapshots.py: an empty layer over a disk shows what the disk shows.
"""

from __future__ import annotations

import logging
import shutil
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from vm.api import MachineId
from vm.errors import VmError, VolumeBusy
from vm.node.keeper import Machine
from vm.node.lanes import SAVING
from vm.node.layers import Layers
from vm.node.place import Place
from vm.node.records import Attached, Record
from vm.node.roster import Roster
from vm.node.volumes import Volumes
from vm.storage.layout import LayerId

log = logging.getLogger("atoll.node")


@dataclass(slots=True)
class _Divided:
    """What both go on in; `fresh` by the serials of the original's volumes."""

    original: list[Attached] = field(default_factory=list)
    fork: list[Attached] = field(default_factory=list)
    fresh: dict[str, LayerId] = field(default_factory=dict)


class Division:
    """Takes the live snapshot of a fork."""

    def __init__(self, place: Place, roster: Roster, layers: Layers, volumes: Volumes) -> None:
        self._layout = place.layout
        self._names = place.names
        self._lanes = place.lanes
        self._roster = roster
        self._layers = layers
        self._volumes = volumes

    def require(self, mine: Record, record: Record) -> None:
        """Return if the fork may have what it is to have: snapshots of its original at the same paths. VolumeBusy."""
        there = {(one.volume, one.path) for one in mine.attached if one.read_only and not one.copy}
        if [mount for mount in record.spec.volumes if (mount.volume, mount.path) not in there or not mount.read_only]:
            raise VolumeBusy("a fork begins with no volumes but the snapshots that its original has")

    async def divide(self, original: Machine, record: Record, memory: Path) -> None:
        """Write the original's memory to `memory`; both records name what each has from that moment on. VmError."""
        if not await self._divide(original, record, memory):
            log.info("machine %s stands still while it is forked: the host is busy", original.record.machine)
            await self._divide(original, record, memory, standing=True)
        lane = f"names of {record.machine}"
        await self._lanes.run(lane, lambda: self._copy_names(original.record.machine, record.machine), deadline=60)
        self._lanes.forget(lane)
        await self._roster.require_saved(record)

    def _copy_names(self, original: MachineId, fork: MachineId) -> None:
        """Let the fork know which name each virtual address in its memory stands for, before its record is there."""
        self._layout.machine(fork).mkdir(mode=0o711, exist_ok=True)
        with suppress(FileNotFoundError):
            shutil.copyfile(self._layout.names(original), self._layout.names(fork))

    async def _divide(self, original: Machine, record: Record, memory: Path, *, standing: bool = False) -> bool:
        mine = original.record
        name = self._names.of(mine.body)
        disks_before, attached_before = list(mine.disks), list(mine.attached)
        with ExitStack() as made:
            fresh, own = made.enter_context(self._layers.fresh()), made.enter_context(self._layers.fresh())
            # As large as what they lie over, to the byte: what the memory knows of it
            await self._layers.over(disks_before[0], fresh, own)
            divided = await self._prepare(mine, record, made)
            mine.disks, mine.attached = [fresh, *disks_before], divided.original
            await self._roster.save_first(mine)
            await self._note(mine)
            try:
                good = await self._lanes.run(
                    name,
                    lambda: self._layers.snapshot(mine, fresh, memory, divided.fresh, standing=standing),
                    deadline=SAVING,
                )
            except VmError:
                if not await self._layers.writes_to(mine, "", fresh):
                    mine.disks, mine.attached = disks_before, attached_before
                    await self._roster.save_first(mine)
                    await self._note(mine)
                raise
            record.disks, record.attached = [own, *disks_before], divided.fork
            return good

    async def _prepare(self, mine: Record, record: Record, made: ExitStack) -> _Divided:
        """Empty layers over each of its volumes' disks, one for it and one for its fork."""
        divided = _Divided()
        for one in mine.attached:
            on, own = made.enter_context(self._layers.fresh()), made.enter_context(self._layers.fresh())
            await self._layers.over(one.layers[0], on, own)
            shared = one.volume in [mount.volume for mount in record.spec.volumes]
            divided.original.append(Attached(one.volume, one.path, one.read_only, [on, *one.layers], one.copy))
            divided.fork.append(Attached(one.volume, one.path, True, [own, *one.layers], copy=not shared))
            divided.fresh[one.serial] = on
        return divided

    async def _note(self, mine: Record) -> None:
        """Let the records of the volumes that it writes to name the layers that its own names."""
        if self._volumes.writable(mine.spec.root):
            await self._volumes.put_layers(mine.spec.root, mine.disks)
        for one in mine.attached:
            if not one.read_only and not one.copy:
                await self._volumes.put_layers(one.volume, one.layers)
