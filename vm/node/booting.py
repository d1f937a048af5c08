"""Boots machines, so many at a time: from a clone that waits, by clone, from saved memory, or cold."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress

from vm.api import MachineId, MachineState, Origin, StopReason
from vm.background import spawn
from vm.errors import HostFull, HypervisorError, VmError
from vm.host.memory import OutOfMemoryWatch
from vm.libvirt import domains
from vm.node.asking import ask
from vm.node.attaching import Attaching
from vm.node.doors import Doors
from vm.node.keeper import Keeper, Machine
from vm.node.lanes import SAVING, TooSlow
from vm.node.place import Place
from vm.node.pool import Pool
from vm.node.process import qemu_like_others
from vm.node.records import Record
from vm.node.room import Room, reason_of_full
from vm.node.roster import Roster
from vm.node.start import Starter
from vm.node.templates import Templates, size_of
from vm.node.volumes import Volumes

log = logging.getLogger("atoll.node")

_RESUMES = 2
_FLUSHING = 10.0
MAX_BOOTS = 3


class Booting:
    """The queue of boots; `ready` is called with each machine that has come up."""

    def __init__(
        self,
        place: Place,
        roster: Roster,
        room: Room,
        doors: Doors,
        starter: Starter,
        templates: Templates,
        keeper: Keeper,
        pool: Pool,
        volumes: Volumes,
        attaching: Attaching,
        out_of_memory: OutOfMemoryWatch,
        ready: Callable[[Machine], None],
    ) -> None:
        self._config = place.config
        self._layout = place.layout
        self._names = place.names
        self._lanes = place.lanes
        self._conn = place.conn
        self._scratch = place.scratch
        self._roster = roster
        self._room = room
        self._doors = doors
        self._starter = starter
        self._templates = templates
        self._keeper = keeper
        self._pool = pool
        self._volumes = volumes
        self._attaching = attaching
        self._out_of_memory = out_of_memory
        self._ready = ready
        self._at_work: set[MachineId] = set()
        self.closing = False

    def enqueue(self, machine: Machine) -> None:
        """Let the machine boot when it is its turn."""
        self._roster.queue.append(machine)
        self._roster.announce(machine)
        self._next_boots()

    def idle(self) -> bool:
        """Whether nobody waits for a boot."""
        return not self._roster.queue and not self._at_work and not self.closing

    def require_turn(self) -> None:
        """HostFull where too many wait already."""
        if len(self._roster.queue) >= self._config.queue_limit:
            raise HostFull(f"{len(self._roster.queue)} machines wait for their turn already")

    def new_body(self, record: Record) -> None:
        """Call its next domain otherwise: what libvirt still has to tell of the one before is not about that."""
        before = self._scratch / f"{record.body}.save"
        record.body = secrets.token_hex(16)
        if record.origin is Origin.FORK and before.exists():
            before.rename(self._scratch / f"{record.body}.save")

    async def take(self, machine: Machine, waiting: Machine) -> bool:
        """Make a clone that waited this machine; False (and nothing is left of the clone) if it does not answer."""
        began = time.monotonic()
        asked, record = machine.record, waiting.record
        record.spec, record.since, record.has_secrets = asked.spec, asked.since, asked.has_secrets
        # What making it cost is nobody's
        record.cpu_before, record.stages, record.boots = asked.cpu_before - record.cpu_seconds, {}, 1
        record.cpu_seconds = asked.cpu_seconds
        machine.record, machine.channel = record, waiting.channel
        self._pool.given(waiting)
        if waiting.channel is not None:
            waiting.channel.listen(machine.link_changed)
        record.origin, record.state = Origin.POOL, MachineState.STARTING
        try:
            await self._roster.require_saved(record)
            if _has_ended(machine, record):
                return True
            self._roster.announce(machine)
            self._doors.open(record)
            name = self._names.of(record.body)
            async with asyncio.timeout(10):
                await self._lanes.run(name, lambda: self._let_go_on(name), deadline=10)
                if machine.channel is None:
                    raise HypervisorError("it has no channel")
                await self._starter.introduce(record, machine.channel)
            await self._attach_wanted(machine)
        except (VmError, OSError, TimeoutError) as error:
            log.warning("machine %s: the clone that waited for it is of no use: %s", record.machine, error)
            if _has_ended(machine, record):
                return True
            dropping = spawn(self._pool.drop(Machine(record, channel=machine.channel)), name=f"drop {record.body}")
            machine.record, machine.channel = asked, None
            if asked.spec.volumes:
                await asyncio.wait([dropping])  # it may have them open
            return False
        record.stages["pool"] = round(time.monotonic() - began, 4)
        if not _has_ended(machine, record):
            self._came_up(machine)
            machine.work = spawn(self._keeper.keep(machine), name=f"keep {record.machine}")
        return True

    def _let_go_on(self, name: str) -> None:
        qemu_like_others(self._layout, name)
        domains.domain_resume(self._conn, name)

    def _next_boots(self) -> None:
        while self._roster.queue and len(self._at_work) < self._config.boot_places and not self.closing:
            machine = self._roster.queue.pop(0)
            self._at_work.add(machine.record.machine)
            machine.work = spawn(self._boot(machine), name=f"boot {machine.record.machine}")

    async def _boot(self, machine: Machine) -> None:
        record = machine.record
        queued = round(time.time() - record.since, 4)
        record.boots += 1
        failure: tuple[StopReason, str] | None = None
        blame_host = came_up = False
        try:
            await self._room.make(record)
            await self._prepare(record)
            before = dict(record.stages)
            self._roster.enter(machine, MachineState.STARTING)
            machine.channel = await self._starter.start(record, machine.link_changed)
            came_up = True
            if record.origin is Origin.CLONE:
                self._templates.worked(record.template)
                self._pool.rest()
            await self._attach_wanted(machine)
            record.stages = {"queue": queued, **before, **record.stages}
            self._came_up(machine)
        except HostFull as error:
            failure = reason_of_full(error), error.detail
            blame_host = True
        except TooSlow as error:
            failure = StopReason.BOOT_FAILED, error.detail
            blame_host = True
        except VmError as error:
            failure = StopReason.BOOT_FAILED, error.detail
        except Exception as error:
            # Whatever it was: one that is neither here nor there would say nothing for ever
            if not isinstance(error, OSError | TimeoutError):
                log.exception("machine %s", record.machine)
            failure = StopReason.BOOT_FAILED, f"{type(error).__name__}: {error}"
        except asyncio.CancelledError:
            if self.closing and machine.ending is None:
                record.enter(MachineState.QUEUED)
                self._roster.save(record)
            raise
        finally:
            self._at_work.discard(record.machine)
            if not self.closing:
                self._next_boots()
        if failure is not None:
            log.warning("machine %s did not start: %s", record.machine, failure[1])
            if machine.ending is None:
                await self._not_started(machine, *failure, blame_host=blame_host, came_up=came_up)
            return
        await self._keeper.keep(machine)

    async def _attach_wanted(self, machine: Machine) -> None:
        """Give a machine that has just come up its volumes; a memory that is gone on with has them."""
        record = machine.record
        if record.spec.root and record.origin is Origin.COLD and machine.channel is not None:
            await self._attaching.grow_root(machine.channel)
        known = record.origin is Origin.RESUME or (record.origin is Origin.FORK and not record.template)
        if record.spec.volumes and not known and machine.channel is not None:
            began = time.monotonic()
            try:
                await self._attaching.attach_wanted(record, machine.channel)
            except VmError:
                await self._starter.give_up(record)
                raise
            record.stages["volumes"] = round(time.monotonic() - began, 4)

    async def _prepare(self, record: Record) -> None:
        """Decide how a machine starts whose turn it is, and on which layers."""
        root = record.spec.root if record.origin not in (Origin.RESUME, Origin.FORK) else ""
        if root and (record.fresh or self._volumes.writable(root)):
            if self._volumes.writable(root) or not await self._from_template(record):
                record.origin, record.template = Origin.COLD, ""
                record.disks = await self._volumes.open_root(root, secrets.token_hex(16))
            return
        if record.origin in (Origin.RESUME, Origin.FORK) or not record.fresh:
            if record.origin not in (Origin.RESUME, Origin.FORK):
                record.origin = Origin.COLD
                await self._volumes.require_unchanged(record.disks[1:])
            return
        if await self._from_template(record):
            return
        record.origin, record.template = Origin.COLD, ""
        record.disks = [secrets.token_hex(16)]

    async def _from_template(self, record: Record) -> bool:
        """Whether it starts from a template; where there is none its note says so."""
        if record.note or record.spec.image:
            return False
        template = self._templates.find(size_of(record))
        if template is None or template.image != record.image or not (self._config.clones or template.live):
            if self._config.clones:
                what = "of what it boots from" if record.spec.root else "for a machine of this size"
                record.note = f"booted, because there is no template {what} yet"
            return False
        if record.spec.root:
            await self._volumes.require_whole(self._volumes.get(record.spec.root))
        if template.live:
            # Once as it is copied, and once more in the machine
            await self._room.make_free(2 * self._templates.kept_mib(template))
            try:
                image = self._scratch / f"{record.body}.save"
                await self._templates.lend(template, image, self._layout.names(record.machine))
            except HypervisorError as error:
                record.note = f"booted, because it could not go on from the memory that was kept: {error.detail}"[:300]
                return False
        # What goes on from somebody's memory is a fork of it, whose identity and random numbers are its own
        record.origin, record.template = Origin.FORK if template.live else Origin.CLONE, template.key
        record.disks = [secrets.token_hex(16), *template.layers]
        return True

    async def _not_started(
        self, machine: Machine, reason: StopReason, detail: str, *, blame_host: bool, came_up: bool
    ) -> None:
        """What follows a start that failed; `blame_host`: for want of room or time, whatever it was started from.

        `came_up`: the machine did, and what was to be attached to it failed.
        """
        record = machine.record
        stage = list(record.stages)[-1] if record.stages else ""
        if machine.channel is not None:
            await machine.channel.close()
            machine.channel = None
        with suppress(VmError, OSError):
            await self._starter.release(record)
        if record.origin in (Origin.CLONE, Origin.FORK) and record.template and not came_up:
            # Whatever is wrong with its template, a machine can still be had the slow way
            if not blame_host:
                self._templates.failed(record.template, stage)
            if record.origin is Origin.CLONE or record.boots >= _RESUMES:
                # A memory that somebody kept is tried twice: on a busy host its agent may answer too late
                record.note = f"booted, because it could not be cloned: {detail}"[:300]
            record.origin, record.disks, record.template = Origin.COLD, [], ""
            self.new_body(record)
            record.enter(MachineState.QUEUED)
            self._roster.save(record)
            self.enqueue(machine)
            return
        if record.origin is Origin.RESUME:
            # Only a memory that was looked at twice and found bad is given up: else it is as good as before
            if not record.committed and not blame_host and record.boots < _RESUMES:
                self.new_body(record)
                record.enter(MachineState.QUEUED)
                self._roster.save(record)
                self.enqueue(machine)
                return
            if not record.committed and (blame_host or stage != "domain" or self._out_of_memory.killed_lately()):
                self._roster.enter(machine, MachineState.SUSPENDED, detail=detail)
                return
            await self.drop_memory(record)
            reason = StopReason.RESUME_FAILED
        self._roster.stopped(machine, reason, detail)

    async def drop_memory(self, record: Record) -> None:
        """Remove the memory that the machine was suspended with."""
        # Under another name first: by the time it is removed the next suspend may have written one
        past = self._layout.past_memory(record.machine, secrets.token_hex(16))
        await self._roster.written()  # which says that it is not needed any more
        if record.state in (MachineState.SUSPENDING, MachineState.SUSPENDED):
            return  # it was started meanwhile, and this is its next one
        with suppress(OSError):
            os.rename(self._layout.memory(record.machine), past)
        # Gigabytes: taking them from a file system is no work for the event loop
        await self._lanes.run("memory", lambda: past.unlink(missing_ok=True), deadline=SAVING, slow=True)

    def _came_up(self, machine: Machine) -> None:
        record = machine.record
        record.fresh = False
        record.memory = ""
        self._roster.enter(machine, MachineState.READY)
        log.info("machine %s is ready (%s): %s", record.machine, record.origin, record.stages)
        self._ready(machine)


def _has_ended(machine: Machine, record: Record) -> bool:
    """Whether a machine that is being started was stopped meanwhile."""
    return machine.ending is not None or record.state is not MachineState.STARTING


async def flush(machine: Machine) -> None:
    """Have the guest write what is dirty to its disk, if it answers in time."""
    if machine.channel is not None:
        with suppress(VmError, TimeoutError):
            async with asyncio.timeout(_FLUSHING):
                await ask(machine.channel, "sync", patience=1)
