"""Suspends machines with their memory, and lets them go on."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from contextlib import suppress
from pathlib import Path

from vm.api import MachineId, MachineInfo, MachineState, Origin
from vm.background import spawn
from vm.errors import HostFull, MachineGone, VmError
from vm.libvirt import domains
from vm.net.sockets import make_in
from vm.node.booting import Booting, flush
from vm.node.doors import Doors
from vm.node.keeper import Keeper, Machine
from vm.node.lanes import SAVING, TooSlow
from vm.node.place import Place
from vm.node.records import Record
from vm.node.room import Room
from vm.node.roster import Roster
from vm.node.start import Starter
from vm.storage.qcow2 import sync

log = logging.getLogger("atoll.node")

_SOON = 60.0


class Suspending:
    """Half a suspend is none: a machine is suspended once its memory is whole on the disk, or it runs on."""

    def __init__(
        self,
        place: Place,
        roster: Roster,
        room: Room,
        doors: Doors,
        starter: Starter,
        keeper: Keeper,
        booting: Booting,
    ) -> None:
        self._config = place.config
        self._layout = place.layout
        self._names = place.names
        self._lanes = place.lanes
        self._conn = place.conn
        self._roster = roster
        self._room = room
        self._doors = doors
        self._starter = starter
        self._keeper = keeper
        self._booting = booting

    async def suspend(self, machine: MachineId) -> MachineInfo:
        """See vm.api.Node.machine_suspend."""
        known = self._roster.get(machine)
        # A save that goes on is waited for, nothing else: it would come as a surprise to whoever works on meanwhile
        async with known.busy if known.record.state is MachineState.SUSPENDING else known.held():
            if known.record.state is MachineState.SUSPENDED:
                return self._roster.info(known)
            self._roster.require_running(known)
            others = [one.record for one in self._roster.known.values() if one.record.state is MachineState.SUSPENDING]
            free = shutil.disk_usage(self._layout.machines).free // 2**20 - sum(one.memory_mib for one in others)
            wanted = known.record.memory_mib
            if free < wanted + self._config.disk_reserve_mib:
                raise HostFull(f"only {max(0, free)} MiB are free: no room to keep {wanted} MiB of memory")
            known.record.committed = False
            answers = known.record.state is MachineState.READY
            self._roster.enter(known, MachineState.SUSPENDING)
            # Whoever asked may go away; half a suspend is none
            saving = spawn(self._suspend(known, answers), name=f"suspend {machine}")
            await asyncio.shield(saving)
        return self._roster.info(known)

    async def _suspend(self, machine: Machine, answers: bool) -> None:
        record = machine.record
        name, memory = self._names.of(record.body), self._layout.memory(record.machine)
        began = time.monotonic()
        await self._roster.written()  # that it is being saved: a memory without that is nobody's
        # Its disk must be whole even if its memory is never seen again; an agent that is silent is not waited for
        if answers:
            await flush(machine)
        if machine.work is not None:
            machine.work.cancel()
            await asyncio.wait([machine.work])
        if machine.channel is not None:
            await machine.channel.close()
            machine.channel = None
        self._doors.shut(record.body)
        try:
            with suppress(VmError, OSError):
                await self._keeper.measure(record)
            if machine.ending is not None:
                raise MachineGone(f"machine {record.machine} was stopped meanwhile")
            await self._save(name, memory)
        except (VmError, OSError) as error:
            await self._drop(memory)
            if machine.ending is None and record.state is MachineState.SUSPENDING:
                log.warning("machine %s could not be suspended and runs on: %s", record.machine, error)
                await self.open_again(record)
                self.adopt(machine)
                self._roster.enter(machine, MachineState.READY)
            raise
        await self._require_saving(machine)
        # Its memory knows the names, and both must be there after a loss of power, too
        durable = [self._layout.names(record.machine), memory, memory.parent]
        try:
            await self._lanes.run(name, lambda: sync(durable), deadline=SAVING, slow=True)
        except VmError as error:
            log.error("machine %s: what was saved may not outlive a loss of power: %s", record.machine, error)
        await self._require_saving(machine)
        record.cpu_before = record.cpu_seconds
        record.memory, record.committed, record.boots = str(memory), False, 0
        self._roster.enter(machine, MachineState.SUSPENDED)
        log.info("machine %s is suspended: %.2f s", record.machine, time.monotonic() - began)
        await self._starter.release(record)

    async def _save(self, name: str, memory: Path) -> None:
        """Write its memory down, and end its domain. VmError, and it runs on."""
        try:
            await self._lanes.run(
                name, lambda: domains.domain_save(self._conn, name, memory), deadline=SAVING, slow=True
            )
        except TooSlow:
            # It would end the domain whenever it is done, long after somebody was told that it runs on
            await self._lanes.run(f"{name}/abort", lambda: domains.domain_save_abort(self._conn, name), deadline=_SOON)
            self._lanes.forget(f"{name}/abort")
            # In the save's own lane: it has failed by now, or was done at the last moment
            state = await self._lanes.run(name, lambda: domains.domain_state(self._conn, name), deadline=_SOON)
            if state is not None:
                raise

    async def _drop(self, memory: Path) -> None:
        # Gigabytes: taking them from a file system is no work for the event loop. What cannot be removed is nobody's.
        with suppress(OSError):
            await self._lanes.run("memory", lambda: memory.unlink(missing_ok=True), deadline=SAVING, slow=True)

    async def _require_saving(self, machine: Machine) -> None:
        """MachineGone, and no memory is left, where its end came first."""
        record = machine.record
        if machine.ending is not None or record.state is not MachineState.SUSPENDING:
            await self._drop(self._layout.memory(record.machine))
            raise MachineGone(f"machine {record.machine} was stopped meanwhile")

    async def resume(self, machine: MachineId) -> MachineInfo:
        """See vm.api.Node.machine_resume."""
        known = self._roster.get(machine)
        async with known.busy:
            record = known.record
            if record.state is MachineState.STOPPED:
                raise MachineGone(f"machine {machine} is {record.state}")
            if record.state is MachineState.SUSPENDED:
                self._booting.require_turn()
                record.origin = Origin.RESUME
                await self._room.make(record)
                if known.record.state is not MachineState.SUSPENDED:
                    raise MachineGone(f"machine {machine} was stopped meanwhile")
                record.boots, record.note = 0, ""
                # What runs from here on runs in this start of the host, whenever it was made
                record.boot_id = self._roster.boot_id
                self._booting.new_body(record)
                record.enter(MachineState.QUEUED)
                try:
                    await self._roster.require_saved(record)
                except (VmError, OSError):
                    with suppress(MachineGone):
                        self._roster.require_wanted(known)
                        record.enter(MachineState.SUSPENDED)
                    raise
                self._roster.require_wanted(known)
                self._booting.enqueue(known)
        return self._roster.info(known)

    # -- a machine that runs, and of which this node has nothing yet

    async def open_again(self, record: Record) -> None:
        """Make a door for a machine that has a namespace; where that fails, it has no network."""
        name = self._names.of(record.body)
        try:
            sockets = await self._lanes.run(name, lambda: make_in(name), deadline=10)
            self._doors.made(record.body, sockets)
            self._doors.open(record)
        except VmError as error:
            log.error("machine %s has no network: %s", record.machine, error)

    def adopt(self, machine: Machine) -> None:
        """Take over a machine that runs already."""
        machine.channel = self._starter.channel(machine.record.body, machine.link_changed)
        machine.work = spawn(self._keeper.keep(machine), name=f"keep {machine.record.machine}")
