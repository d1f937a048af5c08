"""Takes snapshots of machines with their memory: who boots from one goes on from that moment, as a fork does."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

from vm.api import MachineId, VolumeId, VolumeInfo
from vm.background import spawn
from vm.errors import HostFull, HypervisorError, VmError, VolumeBusy
from vm.libvirt import domains
from vm.node.booting import flush
from vm.node.keeper import Machine
from vm.node.lanes import SAVING
from vm.node.layers import Layers
from vm.node.merging import Merging
from vm.node.place import Place
from vm.node.records import Record
from vm.node.room import Room
from vm.node.roster import Roster
from vm.node.templates import Templates, size_of
from vm.node.volumes import Volume, Volumes


class Remembering:
    """Keeps the memory of a machine that runs on, with a snapshot of its disk of the same moment."""

    def __init__(
        self,
        place: Place,
        roster: Roster,
        room: Room,
        layers: Layers,
        volumes: Volumes,
        templates: Templates,
        merging: Merging,
    ) -> None:
        self._layout = place.layout
        self._names = place.names
        self._conn = place.conn
        self._lanes = place.lanes
        self._scratch = place.scratch
        self._roster = roster
        self._room = room
        self._layers = layers
        self._volumes = volumes
        self._templates = templates
        self._merging = merging
        self.images: set[VolumeId] = set()  # in memory, until they are on the disk

    async def snapshot(self, machine: MachineId, snapshot: VolumeId) -> VolumeInfo:
        """See vm.api.Node.machine_snapshot."""
        original = self._roster.get(machine)
        self._volumes.require_id(snapshot)
        if not self._volumes.knows(snapshot):
            async with original.held():
                self._roster.require_running(original)
                record = original.record
                if record.spec.volumes or self._volumes.writable(record.spec.root):
                    raise VolumeBusy("its memory knows volumes, which are not in a snapshot: detach them first")
                await self._room.make_free(await self._resident_mib(record))
                # Its whole memory may lie there for a moment, and stays on the disk
                if shutil.disk_usage(self._scratch).free < record.memory_mib * 2**20:
                    raise HostFull(f"no room in memory for a copy of {record.memory_mib} MiB")
                if shutil.disk_usage(self._layout.templates).free < record.memory_mib * 2**20:
                    raise HostFull(f"no room to keep {record.memory_mib} MiB of memory")
                # Whoever asked may go away; half of it is none
                await asyncio.shield(spawn(self._snapshot(original, snapshot), name=f"remember {machine}"))
        return await self._volumes.info(snapshot)

    async def _resident_mib(self, record: Record) -> int:
        name = self._names.of(record.body)
        return await self._lanes.run(name, lambda: domains.domain_resident_mib(self._conn, name), deadline=10)

    async def _snapshot(self, original: Machine, snapshot: VolumeId) -> None:
        record = original.record
        memory = self._scratch / f"{snapshot}.save"
        # What is dirty is written before, so that it stands still for as short as can be
        await flush(original)
        self.images.add(snapshot)
        try:
            before = list(record.disks)
            if not await self._take(record, memory):
                before = list(record.disks)
                await self._take(record, memory, standing=True)
            made = Volume(snapshot, record.spec.disk_gib * 2**30, before, record.image, frozen=True)
            # The snapshot's record comes last: until then this memory is nobody's
            size = replace(size_of(record), root=snapshot)
            await self._templates.keep(size, record.image, before, memory, self._layout.names(record.machine))
            try:
                await self._volumes.keep(made)
            except (VmError, OSError):
                self._templates.forget_root(snapshot)
                raise
        except OSError as error:
            raise HypervisorError(f"its memory could not be kept ({error.strerror})") from error
        finally:
            await self._lanes.run("memory", lambda: memory.unlink(missing_ok=True), deadline=SAVING)
            self.images.discard(snapshot)
        self._volumes.seal(made)
        self._merging.if_long(original)

    async def _take(self, record: Record, memory: Path, *, standing: bool = False) -> bool:
        """Write its memory down, and let its disk go on in another layer; False where that memory is of no use."""
        name, before = self._names.of(record.body), list(record.disks)
        with self._layers.fresh() as fresh:
            await self._layers.over(before[0], fresh)
            record.disks = [fresh, *before]
            await self._roster.save_first(record)
            try:
                return await self._lanes.run(
                    name, lambda: self._layers.snapshot(record, fresh, memory, standing=standing), deadline=SAVING
                )
            except VmError:
                if not await self._layers.writes_to(record, "", fresh):
                    record.disks = before
                    await self._roster.save_first(record)
                raise
