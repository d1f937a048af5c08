"""Forks machines with their memory, by a snapshot of one that runs on."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace

from vm.api import MachineId, MachineInfo, MachineSpec, MachineState, Origin, Secret
from vm.background import spawn
from vm.errors import HostFull, HypervisorError, MachineExists, VmError
from vm.libvirt import domains
from vm.node.booting import Booting, flush
from vm.node.division import Division
from vm.node.keeper import Machine
from vm.node.lanes import SAVING
from vm.node.merging import Merging
from vm.node.place import Place
from vm.node.room import Room
from vm.node.roster import Roster
from vm.node.sanity import require_sane_spec


class Forking:
    """Makes a second machine of one that runs."""

    def __init__(
        self,
        place: Place,
        roster: Roster,
        room: Room,
        division: Division,
        booting: Booting,
        merging: Merging,
    ) -> None:
        self._layout = place.layout
        self._names = place.names
        self._lanes = place.lanes
        self._conn = place.conn
        self._scratch = place.scratch
        self._roster = roster
        self._room = room
        self._division = division
        self._booting = booting
        self._merging = merging

    async def fork(self, source: MachineId, spec: MachineSpec, secrets: Sequence[Secret] = ()) -> MachineInfo:
        """See vm.api.Node.machine_fork."""
        original = self._roster.get(source)
        mine = original.record
        spec = replace(
            spec, memory_mib=mine.spec.memory_mib, vcpus=mine.spec.vcpus, disk_gib=mine.spec.disk_gib, image=mine.image
        )
        require_sane_spec(spec, secrets)
        before = self._roster.known.get(spec.machine)
        if before is not None:
            raise MachineExists(f"machine {spec.machine} is {before.record.state}")
        record = self._roster.record(spec, mine.image, secrets)
        record.origin = Origin.FORK
        machine = self._roster.known[spec.machine] = Machine(record)
        try:
            self._booting.require_turn()
            name = self._names.of(mine.body)
            resident = await self._lanes.run(name, lambda: domains.domain_resident_mib(self._conn, name), deadline=10)
            # Once as it is copied, and once more in the copy
            await self._room.make(record, 2 * resident)
            async with original.held():
                self._roster.require_running(original)
                self._roster.require_wanted(machine)
                self._division.require(mine, record)
                # Its whole memory may lie there for a moment
                if shutil.disk_usage(self._scratch).free < mine.memory_mib * 2**20:
                    raise HostFull(f"no room in memory for a copy of {mine.memory_mib} MiB")
                forking = spawn(self._fork(original, machine), name=f"fork {source}")
                await asyncio.shield(forking)
        except VmError:
            await self._take_back(machine)
            raise
        except OSError as error:
            await self._take_back(machine)
            raise HypervisorError(f"the copy could not be written down ({error.strerror})") from error
        return self._roster.info(machine)

    async def _take_back(self, machine: Machine) -> None:
        """Leave nothing of a fork that was not made."""
        record = machine.record
        self._roster.unknow(machine, None)
        if self._roster.known.get(record.machine) is machine:
            return  # it was stopped meanwhile, and is known as that
        await self._roster.written()  # or it would be there again

        def remove() -> None:
            (self._scratch / f"{record.body}.save").unlink(missing_ok=True)
            shutil.rmtree(self._layout.machine(record.machine), ignore_errors=True)

        await self._lanes.run("memory", remove, deadline=SAVING)

    async def _fork(self, original: Machine, machine: Machine) -> None:
        record = machine.record
        memory = self._scratch / f"{record.body}.save"
        began = time.monotonic()
        # What is dirty is written before, so that the original stands still for as short as can be
        await flush(original)

        record.fresh = False
        await self._division.divide(original, record, memory)
        record.stages["snapshot"] = round(time.monotonic() - began, 4)
        if copies := [one.path for one in record.attached if one.copy]:
            what = f"what is mounted at {', '.join(copies)} is a copy of that moment"
            record.note = f"{what}, which goes when it stops"[:300]
        await self._roster.require_saved(record)
        record.since = time.time()  # it waits for its turn from here on
        if machine.ending is None and record.state is MachineState.QUEUED:
            self._booting.enqueue(machine)
        self._merging.if_long(original)
