"""Ends machines: because somebody asked for it, or because libvirt says that they have ended."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from vm.api import MachineId, MachineInfo, MachineState, Origin, StopReason
from vm.background import spawn
from vm.errors import VmError
from vm.host.cgroups import Killed
from vm.host.memory import OutOfMemoryWatch
from vm.libvirt import domains
from vm.libvirt.connection import Event, Happening
from vm.node.asking import answer_of
from vm.node.booting import MAX_BOOTS, Booting
from vm.node.doors import Doors
from vm.node.keeper import Keeper, Machine
from vm.node.lanes import TooSlow
from vm.node.place import Place
from vm.node.pool import Pool
from vm.node.roster import WITHOUT_DOMAIN, Roster
from vm.node.start import Starter
from vm.storage.layout import BodyId

log = logging.getLogger("atoll.node")

_KILLED: dict[Killed | None, tuple[StopReason, str]] = {
    Killed.BY_ITS_LIMIT: (StopReason.MEMORY_LIMIT, "QEMU reached its memory limit on the host, whose kernel ended it"),
    Killed.BY_THE_HOST: (StopReason.HOST_OUT_OF_MEMORY, "the host ran out of memory, and its kernel ended QEMU"),
}
_TRIES = 20  # to break off a save, half a second each
_SHUTDOWN_PATIENCE = 10.0  # seconds a guest has to write what is dirty: it may be somebody's work


class Ending:
    """Takes a machine apart, whatever it is doing, and says why."""

    def __init__(
        self,
        place: Place,
        roster: Roster,
        doors: Doors,
        starter: Starter,
        keeper: Keeper,
        pool: Pool,
        booting: Booting,
        out_of_memory: OutOfMemoryWatch,
    ) -> None:
        self._names = place.names
        self._lanes = place.lanes
        self._conn = place.conn
        self._roster = roster
        self._doors = doors
        self._starter = starter
        self._keeper = keeper
        self._pool = pool
        self._booting = booting
        self._out_of_memory = out_of_memory

    async def stop(self, machine: MachineId, detail: str = "") -> MachineInfo:
        """See vm.api.Node.machine_stop."""
        known = self._roster.get(machine)
        while known.record.state is not MachineState.STOPPED:
            if known.record.state is MachineState.SUSPENDED and known.ending is None:
                self._roster.stopped(known, StopReason.REQUESTED, detail)
                await self._booting.drop_memory(known.record)
                break
            # One that is ending already may be about to boot once more
            self.begin(known, StopReason.REQUESTED, detail, ask=True)
            if known.ending is not None:
                # Whoever asked may go away; the machine stops all the same
                await asyncio.shield(known.ending)
        if self._roster.known.get(machine) is known and not known.record.detail.startswith(detail):
            self._roster.enter(known, MachineState.STOPPED, reason=known.record.stop_reason, detail=detail)
        return self._roster.info(known)

    def happened(self, event: Event) -> None:
        """libvirt told something by itself."""
        body = self._names.body(event.domain)
        machine = next((m for m in self._roster.known.values() if m.record.body == body), None)
        if machine is None:
            self._pool.gone(body)
            return
        if machine.ending is not None or machine.record.state in WITHOUT_DOMAIN or body in self._starter.given_up:
            return
        log.info("machine %s: libvirt says %s %s", machine.record.machine, event.what.value, event.detail)
        if event.what is Happening.DISK_FULL:
            self.begin(machine, StopReason.DISK_FULL, "the host's disk had no room for what the guest wrote")
        elif event.what is Happening.STOPPED and event.reason is not None:
            reason, detail = event.reason, event.detail
            if reason is StopReason.HYPERVISOR_DIED:
                reason, detail = self._why_it_died(body, detail)
            if machine.record.state is not MachineState.STARTING:
                self.begin(machine, reason, detail)
                return
            if machine.record.origin is Origin.RESUME and not machine.record.committed:
                return  # its start fails by that, and its memory is as good as it was
            # A kernel that dies before anybody was let in has lost nothing: under emulation on a busy host it happens
            restored = machine.record.origin in (Origin.RESUME, Origin.FORK)
            # ... and neither has a clone whose process ends: there are others, and it can be booted
            cloned = machine.record.fresh and machine.record.origin in (Origin.POOL, Origin.CLONE)
            died = reason is StopReason.GUEST_CRASHED or (cloned and reason is StopReason.HYPERVISOR_DIED)
            again = died and machine.record.boots < MAX_BOOTS and not restored
            failed = machine.record.origin is Origin.RESUME
            self.begin(machine, StopReason.RESUME_FAILED if failed else StopReason.BOOT_FAILED, detail, again=again)

    def vanished(self, machine: Machine) -> None:
        """Its domain is not there any more, and nobody told of its end."""
        self.begin(machine, *self._why_it_died(machine.record.body, "its domain is gone"))

    def _why_it_died(self, body: BodyId, detail: str) -> tuple[StopReason, str]:
        """Whether its QEMU was killed for want of memory, and of whose."""
        groups = self._starter.groups
        killed = groups.killed(body) if groups is not None else None
        if killed is None and self._out_of_memory.killed_lately():
            killed = Killed.BY_THE_HOST  # of whom it was nobody counts: it was at that time
        return _KILLED.get(killed, (StopReason.HYPERVISOR_DIED, detail))

    def begin(
        self, machine: Machine, reason: StopReason, detail: str, *, ask: bool = False, again: bool = False
    ) -> None:
        """Let it end in the background: `ask` its agent to shut down before; `again`, boot it once more."""
        if machine.ending is None:
            work = self._ended(machine, reason, detail, ask=ask, again=again)
            machine.ending = spawn(work, name=f"end {machine.record.machine}")

    async def _break_off(self, name: str) -> None:
        """End the save that a domain's lane is busy with, for minutes where the disk is slow; it may just begin."""
        for _ in range(_TRIES):
            with suppress(VmError):  # in a lane of its own
                await self._lanes.run(f"{name}/abort", lambda: domains.domain_save_abort(self._conn, name), deadline=10)
            with suppress(TooSlow):
                await self._lanes.run(name, lambda: None, deadline=0.5)
                break
        self._lanes.forget(f"{name}/abort")

    async def _ended(self, machine: Machine, reason: StopReason, detail: str, *, ask: bool, again: bool) -> None:
        record = machine.record
        try:
            left = await self._take_apart(machine, ask=ask)
        finally:
            # Also where it failed: whoever asks for its stop then begins once more
            machine.ending = None
        if left:
            detail = f"{detail}; not everything of it could be removed: {left}".removeprefix("; ")
        if again and not left and not self._booting.closing:
            log.warning("machine %s is booted once more: %s", record.machine, detail)
            if record.fresh and record.origin in (Origin.COLD, Origin.CLONE, Origin.POOL):
                record.disks = []
            self._booting.new_body(record)
            record.enter(MachineState.QUEUED)
            self._roster.save(record)
            self._booting.enqueue(machine)
        else:
            self._roster.stopped(machine, reason, detail)

    async def _take_apart(self, machine: Machine, *, ask: bool) -> str:
        """Leave nothing of it but its disk; why something could not be removed."""
        record = machine.record
        if machine in self._roster.queue:
            self._roster.queue.remove(machine)
        self._doors.shut(record.body)
        channel = machine.channel
        if ask and channel is not None and record.state is MachineState.READY:
            with suppress(VmError, TimeoutError):
                async with asyncio.timeout(_SHUTDOWN_PATIENCE):
                    await answer_of(channel, "shutdown", patience=1)
        if machine.work is not None:
            machine.work.cancel()
            await asyncio.wait([machine.work])
        if machine.channel is not None:
            await machine.channel.close()
            machine.channel = None
        if record.state is MachineState.SUSPENDING:
            await self._break_off(self._names.of(record.body))
        with suppress(VmError, OSError):
            # Once more before its domain is gone: the last seconds count too
            await self._keeper.measure(record)
        try:
            await self._starter.release(record)
        except Exception as error:  # whatever it was: one that has no end could not be stopped by anybody
            log.exception("machine %s", record.machine)
            return (error.detail if isinstance(error, VmError) else str(error)) or type(error).__name__
        return ""
