"""Owns the machines of one node: their states, the queue of boots, and whoever wants to know of changes."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from vm.api import (
    EgressPolicy,
    MachineId,
    MachineInfo,
    MachineSpec,
    MachineState,
    Origin,
    PassageBatch,
    Secret,
    StopReason,
)
from vm.background import spawn
from vm.egress.secrets import require_sane
from vm.errors import HostFull, HypervisorError, MachineExists, MachineGone, VmError
from vm.guest.calls import call
from vm.guest.channel import GuestStream
from vm.host.kvm import boot_id
from vm.host.memory import OutOfMemoryWatch
from vm.libvirt import domains
from vm.libvirt.connection import Connection, Event, Happening
from vm.net.sockets import make_in
from vm.node.admission import lacking_mib
from vm.node.config import NodeConfig
from vm.node.doors import Doors, policy_of
from vm.node.hostinfo import memory_available, memory_total
from vm.node.keeper import Keeper, Machine
from vm.node.lanes import Lanes, TooSlow
from vm.node.layers import MAX_LAYERS, Layers
from vm.node.pool import Pool
from vm.node.records import Names, Record
from vm.node.start import Starter
from vm.node.templates import Templates, size_of
from vm.storage.images import image_find
from vm.storage.layout import LayerId, Layout, private_directory

log = logging.getLogger("atoll.node")

_MACHINE = re.compile(r"[0-9a-f]{32}")
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_LIMITS = {"memory_mib": (128, 65_536), "vcpus": (1, 32), "disk_gib": (1, 1024)}
_SHUTDOWN_PATIENCE = 10.0  # seconds a guest has to write what is dirty: it may be somebody's work
_SUBSCRIBER_ROOM = 1000
_FLUSHING = 10.0
_SAVING = 1800.0  # seconds for which writing a machine's memory may take: 4 GiB onto a disk that does 2.5 MB/s
MAX_BOOTS = 3
_PASSAGES = 2000
RUNNING = (MachineState.READY, MachineState.LOST)


class Machines:
    """What the verbs of the node's API do. All of it runs in one event loop; blocking work goes through the lanes."""

    def __init__(
        self, config: NodeConfig, layout: Layout, names: Names, lanes: Lanes, conn: Connection, accelerator: str
    ) -> None:
        self.config = config
        self.layout = layout
        self.names = names
        self.lanes = lanes
        self.conn = conn
        self.scratch = config.scratch / names.prefix.rstrip("-")
        private_directory(self.scratch)
        self.doors = Doors(config, layout)
        self.starter = Starter(config, layout, names, lanes, conn, accelerator, self.scratch, self.doors)
        self.keeper = Keeper(config, layout, names, lanes, conn, self.starter, self._observed)
        self.templates = Templates(config, layout, names, lanes, conn, self.starter, accelerator)
        self.pool = Pool(config, layout, names, lanes, conn, self.starter, self.templates, self._idle)
        self.known: dict[MachineId, Machine] = {}
        self.layers = Layers(config, layout, names, lanes, conn, self.starter.owner)
        self.out_of_memory = OutOfMemoryWatch()
        self._queue: list[Machine] = []
        self._booting: set[MachineId] = set()
        self._unsaved: set[MachineId] = set()
        self._subscribers: set[asyncio.Queue[MachineInfo | None]] = set()
        self._boot_id = boot_id()
        self._closing = False

    # -- verbs

    async def start(self, spec: MachineSpec, secrets: Sequence[Secret] = ()) -> MachineInfo:
        """See vm.api.Node.machine_start."""
        _require_sane(spec, secrets)
        before = self.known.get(spec.machine)
        if before is not None and before.record.state is not MachineState.STOPPED:
            raise MachineExists(f"machine {spec.machine} is {before.record.state}")
        kept = before is not None and not before.record.fresh and bool(before.record.disks)
        # Its disk lies over the image it was made from, whatever is asked for now
        wanted = before.record.image if before and kept else spec.image or self.config.image
        image = image_find(self.config.image_cache, wanted)
        record = self._record(spec, image.hash, secrets)
        if before is not None:
            self.new_body(record)
            record.cpu_before = before.record.cpu_seconds
            record.cpu_seconds = before.record.cpu_seconds
            if kept:
                record.disks, record.fresh = before.record.disks, False
        machine = self.known[spec.machine] = Machine(record)
        try:
            self._require_turn()
            await self._make_room(record)
            self._require_wanted(machine)
            if kept or not self._may_clone(record):
                waiting = None
            else:
                self.pool.note(size_of(record))
                waiting = self.pool.take(size_of(record))
            if waiting is not None and await self._take(machine, waiting):
                return self.info(machine)
            record.save(self.layout)
        except VmError:
            self._unknow(machine, before)
            raise
        self.enqueue(machine)
        return self.info(machine)

    def _may_clone(self, record: Record) -> bool:
        # Templates are of the newest image only
        return self.config.clones and record.image == image_find(self.config.image_cache, self.config.image).hash

    def _unknow(self, machine: Machine, before: Machine | None) -> None:
        name = machine.record.machine
        if self.known.get(name) is not machine or machine.record.state is MachineState.STOPPED:
            return  # it was stopped meanwhile, and is known as that
        self.doors.distrust(name)
        if before is not None:
            self.known[name] = before
        else:
            del self.known[name]

    def _record(self, spec: MachineSpec, image: str, secrets: Sequence[Secret]) -> Record:
        self.doors.entrust(spec.machine, secrets)
        return Record(
            spec=spec,
            image=image,
            state=MachineState.QUEUED,
            since=time.time(),
            boot_id=self._boot_id,
            body=spec.machine,
            has_secrets=bool(secrets),
        )

    async def _take(self, machine: Machine, waiting: Machine) -> bool:
        """Make a clone that waited this machine; False (and nothing is left of the clone) if it does not answer."""
        began = time.monotonic()
        asked, record = machine.record, waiting.record
        record.spec, record.since, record.has_secrets = asked.spec, asked.since, asked.has_secrets
        # What making it cost is nobody's
        record.cpu_before, record.stages, record.boots = asked.cpu_before - record.cpu_seconds, {}, 1
        record.cpu_seconds = asked.cpu_seconds
        machine.record, machine.channel = record, waiting.channel
        if waiting.channel is not None:
            waiting.channel.listen(machine.link_changed)
        record.origin, record.state = Origin.POOL, MachineState.STARTING
        try:
            record.save(self.layout)
            self._announce(machine)
            self.doors.open(record)
            name = self.names.of(record.body)
            async with asyncio.timeout(10):
                await self.lanes.run(name, lambda: domains.domain_resume(self.conn, name), deadline=10)
                if machine.channel is None:
                    raise HypervisorError("it has no channel")
                await self.starter.introduce(record, machine.channel)
        except (VmError, OSError, TimeoutError) as error:
            log.warning("machine %s: the clone that waited for it is of no use: %s", record.machine, error)
            if machine.ending is not None:
                return True
            spawn(self.pool.drop(Machine(record, channel=machine.channel)), name=f"drop {record.body}")
            machine.record, machine.channel = asked, None
            return False
        record.stages["pool"] = round(time.monotonic() - began, 4)
        if machine.ending is None:
            self._ready(machine)
            machine.work = spawn(self.keeper.keep(machine), name=f"keep {record.machine}")
        return True

    async def wait(self, machine: MachineId, timeout: float) -> MachineInfo:
        """See vm.api.Node.machine_wait."""
        known = self._get(machine)
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while known.record.state not in _SETTLED:
                    await known.changed.wait()
        return self.info(known)

    async def get(self, machine: MachineId) -> MachineInfo:
        """See vm.api.Node.machine_get."""
        return self.info(self._get(machine))

    async def list(self) -> list[MachineInfo]:
        """See vm.api.Node.machine_list."""
        return [self.info(machine) for machine in self.known.values()]

    async def stop(self, machine: MachineId, detail: str = "") -> MachineInfo:
        """See vm.api.Node.machine_stop."""
        known = self._get(machine)
        while known.record.state is not MachineState.STOPPED:
            if known.record.state is MachineState.SUSPENDED and known.ending is None:
                self.stopped(known, StopReason.REQUESTED, detail)
                await self._drop_memory(known.record)
                break
            # One that is ending already may be about to boot once more
            self._end(known, StopReason.REQUESTED, detail, ask=True)
            if known.ending is not None:
                # Whoever asked may go away; the machine stops all the same
                await asyncio.shield(known.ending)
        if self.known.get(machine) is known and not known.record.detail.startswith(detail):
            self._enter(known, MachineState.STOPPED, reason=known.record.stop_reason, detail=detail)
        return self.info(known)

    async def suspend(self, machine: MachineId) -> MachineInfo:
        """See vm.api.Node.machine_suspend."""
        known = self._get(machine)
        async with known.busy:
            if known.record.state is MachineState.SUSPENDED:
                return self.info(known)
            self._require_running(known)
            free = shutil.disk_usage(self.layout.machines).free // 2**20
            if free < known.record.memory_mib + self.config.disk_reserve_mib:
                raise HostFull(f"only {free} MiB are free: no room to keep {known.record.memory_mib} MiB of memory")
            known.record.committed = False
            self._enter(known, MachineState.SUSPENDING)
            # Whoever asked may go away; half a suspend is none
            saving = spawn(self._suspend(known), name=f"suspend {machine}")
            await asyncio.shield(saving)
        return self.info(known)

    async def _suspend(self, machine: Machine) -> None:
        record = machine.record
        name, memory = self.names.of(record.body), self.layout.memory(record.machine)
        began = time.monotonic()
        # Its disk must be whole even if its memory is never seen again
        await self._flush(machine)
        if machine.work is not None:
            machine.work.cancel()
            await asyncio.wait([machine.work])
        if machine.channel is not None:
            await machine.channel.close()
            machine.channel = None
        self.doors.shut(record.body)
        try:
            with suppress(VmError):
                await self.keeper.measure(record)
            await self.lanes.run(name, lambda: domains.domain_save(self.conn, name, memory), deadline=_SAVING)
        except VmError as error:
            memory.unlink(missing_ok=True)
            if machine.ending is None:
                log.warning("machine %s could not be suspended and runs on: %s", record.machine, error)
                await self.open_again(record)
                self.adopt(machine)
                self._enter(machine, MachineState.READY)
            raise
        if machine.ending is not None or record.state is not MachineState.SUSPENDING:
            # Its end came first, and waits for nothing but its domain
            memory.unlink(missing_ok=True)
            raise MachineGone(f"machine {record.machine} was stopped meanwhile")
        record.cpu_before = record.cpu_seconds
        record.memory, record.committed, record.boots = str(memory), False, 0
        self._enter(machine, MachineState.SUSPENDED)
        self.keeper.measure_disk(record)
        log.info("machine %s is suspended: %.2f s", record.machine, time.monotonic() - began)
        await self.starter.release(record)

    async def resume(self, machine: MachineId) -> MachineInfo:
        """See vm.api.Node.machine_resume."""
        known = self._get(machine)
        async with known.busy:
            record = known.record
            if record.state is MachineState.STOPPED:
                raise MachineGone(f"machine {machine} is {record.state}")
            if record.state is MachineState.SUSPENDED:
                self._require_turn()
                await self._make_room(record)
                if known.record.state is not MachineState.SUSPENDED:
                    raise MachineGone(f"machine {machine} was stopped meanwhile")
                record.origin, record.boots, record.note = Origin.RESUME, 0, ""
                self.new_body(record)
                record.enter(MachineState.QUEUED)
                record.save(self.layout)
                self.enqueue(known)
        return self.info(known)

    async def fork(self, source: MachineId, spec: MachineSpec, secrets: Sequence[Secret] = ()) -> MachineInfo:
        """See vm.api.Node.machine_fork."""
        original = self._get(source)
        mine = original.record
        spec = replace(
            spec, memory_mib=mine.spec.memory_mib, vcpus=mine.spec.vcpus, disk_gib=mine.spec.disk_gib, image=mine.image
        )
        _require_sane(spec, secrets)
        before = self.known.get(spec.machine)
        if before is not None:
            raise MachineExists(f"machine {spec.machine} is {before.record.state}")
        record = self._record(spec, mine.image, secrets)
        record.origin = Origin.FORK
        machine = self.known[spec.machine] = Machine(record)
        try:
            self._require_turn()
            await self._make_room(record)
            async with original.busy:
                self._require_running(original)
                self._require_wanted(machine)
                # Its whole memory may lie there for a moment
                if shutil.disk_usage(self.scratch).free < mine.memory_mib * 2**20:
                    raise HostFull(f"no room in memory for a copy of {mine.memory_mib} MiB")
                forking = spawn(self._fork(original, machine), name=f"fork {source}")
                await asyncio.shield(forking)
        except VmError:
            self._unknow(machine, None)
            raise
        return self.info(machine)

    async def _fork(self, original: Machine, machine: Machine) -> None:
        mine, record = original.record, machine.record
        memory = self.scratch / f"{record.body}.save"
        began = time.monotonic()
        # What is dirty is written before, so that the original stands still for as short as can be
        await self._flush(original)

        name = self.names.of(mine.body)
        with self.layers.fresh() as fresh:
            await self.lanes.run(name, lambda: self.layers.snapshot(mine, fresh, memory), deadline=_SAVING)
            record.disks, record.fresh = [secrets.token_hex(16), *mine.disks], False
            mine.disks = [fresh, *mine.disks]
            mine.save(self.layout)
            record.stages["snapshot"] = round(time.monotonic() - began, 4)
            record.save(self.layout)
            with suppress(FileNotFoundError):  # its memory knows which name each virtual address stands for
                shutil.copyfile(self.layout.names(mine.machine), self.layout.names(record.machine))
        record.since = time.time()  # it waits for its turn from here on
        if machine.ending is None and record.state is MachineState.QUEUED:
            self.enqueue(machine)
        self._merge_if_long(original)

    async def _flush(self, machine: Machine) -> None:
        """Have the guest write what is dirty to its disk, if it answers in time."""
        if machine.channel is not None:
            with suppress(VmError, TimeoutError):
                async with asyncio.timeout(_FLUSHING):
                    await call(await machine.channel.open(timeout=1), "sync")

    def _merge_if_long(self, machine: Machine) -> None:
        if len(machine.record.disks) > MAX_LAYERS:
            spawn(self._merge(machine), name=f"merge {machine.record.machine}")

    async def _merge(self, machine: Machine) -> None:
        async with machine.busy:
            try:
                self._require_running(machine)
                await self.layers.merge(machine.record)
            except VmError as error:
                log.warning("machine %s: its disk's layers are not merged yet: %s", machine.record.machine, error)
                return
            self._save(machine.record)
        await self.layers.sweep(self.needed_layers)

    async def policy(self, machine: MachineId, policy: EgressPolicy, secrets: Sequence[Secret] = ()) -> MachineInfo:
        """See vm.api.Node.machine_policy."""
        known = self._get(machine)
        _require_policy(policy, secrets)
        known.record.spec = replace(known.record.spec, policy=policy)
        known.record.has_secrets = bool(secrets)
        self._save(known.record)
        if known.record.state is not MachineState.STOPPED:  # it gets them when it is started
            self.doors.entrust(machine, secrets)
            self.doors.change(known.record)
        return self.info(known)

    async def passages(self, cursor: str, limit: int) -> PassageBatch:
        """See vm.api.Node.egress_passages."""
        if not 1 <= limit <= _PASSAGES:
            raise HypervisorError(f"between 1 and {_PASSAGES} connections may be asked for at a time")
        return await self.lanes.run("journal", lambda: self.doors.spool.read(cursor, limit), deadline=30)

    async def forget(self, machine: MachineId) -> None:
        """See vm.api.Node.machine_forget."""
        known = self.known.get(machine)
        if known is None:
            return
        if known.record.state is not MachineState.STOPPED:
            raise MachineExists(f"machine {machine} is {known.record.state}")
        # Without its record the directory is half-made, which the next start of a node would remove
        self.layout.record(machine).unlink(missing_ok=True)
        place = self.layout.machine(machine)
        del self.known[machine]
        self.doors.distrust(machine)
        name = self.names.of(known.record.body)
        await self.lanes.run(name, lambda: shutil.rmtree(place, ignore_errors=True), deadline=60)
        self.lanes.forget(name)
        await self.layers.sweep(self.needed_layers)

    def needed_layers(self) -> set[LayerId]:
        """Every layer that somebody needs now."""
        machines = {layer for machine in self.known.values() for layer in machine.record.disks}
        return machines | self.layers.being_made | self.pool.layers() | self.templates.layers()

    async def open_stream(self, machine: MachineId) -> GuestStream:
        """See vm.api.Node.stream_open."""
        known = self._get(machine)
        if known.channel is None or known.ending is not None:
            raise MachineGone(f"machine {machine} is {known.record.state}")
        return await known.channel.open(timeout=5.0)

    @contextmanager
    def subscription(self) -> Iterator[asyncio.Queue[MachineInfo | None]]:
        """Every change from now on; None when the node ends, or when the reader falls too far behind."""
        changes: asyncio.Queue[MachineInfo | None] = asyncio.Queue(_SUBSCRIBER_ROOM)
        self._subscribers.add(changes)
        try:
            yield changes
        finally:
            self._subscribers.discard(changes)

    # -- for the server and for settling

    def info(self, machine: Machine) -> MachineInfo:
        """The machine as the world sees it."""
        record = machine.record
        wanted = record.state is not MachineState.STOPPED and not self.doors.may_open(record)
        return record.info(self._queue.index(machine) + 1 if machine in self._queue else 0, policy_wanted=wanted)

    def enqueue(self, machine: Machine) -> None:
        """Let the machine boot when it is its turn."""
        self._queue.append(machine)
        self._announce(machine)
        self._next_boots()

    def new_body(self, record: Record) -> None:
        """Call its next domain otherwise: what libvirt still has to tell of the one before is not about that."""
        before = self.scratch / f"{record.body}.save"
        record.body = secrets.token_hex(16)
        if record.origin is Origin.FORK and before.exists():
            before.rename(self.scratch / f"{record.body}.save")

    def _require_turn(self) -> None:
        if len(self._queue) >= self.config.queue_limit:
            raise HostFull(f"{len(self._queue)} machines wait for their turn already")

    async def open_again(self, record: Record) -> None:
        """Make a door for a machine that has a namespace; where that fails, it has no network."""
        name = self.names.of(record.body)
        try:
            sockets = await self.lanes.run(name, lambda: make_in(name), deadline=10)
            self.doors.made(record.body, sockets)
            self.doors.open(record)
        except VmError as error:
            log.error("machine %s has no network: %s", record.machine, error)

    def adopt(self, machine: Machine) -> None:
        """Take over a machine that runs already."""
        machine.channel = self.starter.channel(machine.record.body, machine.link_changed)
        machine.work = spawn(self.keeper.keep(machine), name=f"keep {machine.record.machine}")

    def bodies(self) -> set[str]:
        """The bodies that may have a domain, a namespace or a socket now."""
        live = {
            m.record.body
            for m in self.known.values()
            if m.record.state not in (MachineState.STOPPED, MachineState.SUSPENDED)
        }
        ending = {m.record.body for m in self.known.values() if m.ending is not None or m.busy.locked()}
        return live | ending | self.pool.bodies() | self.templates.bodies()

    def _idle(self) -> bool:
        return not self._queue and not self._booting and not self._closing

    def stopped(self, machine: Machine, reason: StopReason, detail: str) -> None:
        """Record that a machine has stopped."""
        record = machine.record
        record.cpu_before = record.cpu_seconds
        record.memory = ""
        self.doors.distrust(record.machine)
        self.keeper.measure_disk(record)
        self._enter(machine, MachineState.STOPPED, reason=reason, detail=detail)

    def happened(self, event: Event) -> None:
        """libvirt told something by itself."""
        body = self.names.body(event.domain)
        machine = next((m for m in self.known.values() if m.record.body == body), None)
        if machine is None:
            self.pool.gone(body)
            return
        if machine.ending is not None or machine.record.state in _WITHOUT_DOMAIN:
            return
        log.info("machine %s: libvirt says %s %s", machine.record.machine, event.what.value, event.detail)
        if event.what is Happening.DISK_FULL:
            self._end(machine, StopReason.DISK_FULL, "the host's disk had no room for what the guest wrote")
        elif event.what is Happening.STOPPED and event.reason is not None:
            reason, detail = event.reason, event.detail
            if reason is StopReason.HYPERVISOR_DIED and self.out_of_memory.killed_lately():
                reason, detail = StopReason.HOST_OUT_OF_MEMORY, "the host ran out of memory, and its kernel ended QEMU"
            if machine.record.state is not MachineState.STARTING:
                self._end(machine, reason, detail)
                return
            # A kernel that dies before anybody was let in has lost nothing: under emulation on a busy host it happens
            restored = machine.record.origin in (Origin.RESUME, Origin.FORK)
            again = reason is StopReason.GUEST_CRASHED and machine.record.boots < MAX_BOOTS and not restored
            failed = machine.record.origin is Origin.RESUME
            self._end(machine, StopReason.RESUME_FAILED if failed else StopReason.BOOT_FAILED, detail, again=again)

    def vanished(self, machine: Machine) -> None:
        """Its domain is not there any more, and nobody told of its end."""
        self._end(machine, StopReason.HYPERVISOR_DIED, "its domain is gone")

    async def close(self) -> None:
        """Stop looking after the machines; those that run run on, those that boot begin anew with the next node."""
        self._closing = True
        for subscriber in self._subscribers:
            with suppress(asyncio.QueueFull):
                subscriber.put_nowait(None)
        endings = [machine.ending for machine in self.known.values() if machine.ending is not None]
        work = [machine.work for machine in self.known.values() if machine.work is not None]
        for task in work:
            task.cancel()
        if endings or work:
            await asyncio.wait([*endings, *work], timeout=15)
        with suppress(VmError):
            await self.pool.close()
        if self.starter.groups is not None:
            self.starter.groups.close()
        self.doors.close()
        for disk in self.templates.layers():
            self.starter.drop_spare(disk)
        for machine in self.known.values():
            if machine.channel is not None:
                await machine.channel.close()

    # -- booting

    def _next_boots(self) -> None:
        while self._queue and len(self._booting) < self.config.boot_places and not self._closing:
            machine = self._queue.pop(0)
            self._booting.add(machine.record.machine)
            machine.work = spawn(self._boot(machine), name=f"boot {machine.record.machine}")

    async def _boot(self, machine: Machine) -> None:
        record = machine.record
        queued = round(time.time() - record.since, 4)
        record.boots += 1
        failure: tuple[StopReason, str] | None = None
        blame_host = False
        try:
            await self._make_room(record)
            self._prepare(record)
            before = dict(record.stages)
            self._enter(machine, MachineState.STARTING)
            machine.channel = await self.starter.start(record, machine.link_changed)
            record.stages = {"queue": queued, **before, **record.stages}
            if record.origin is Origin.CLONE:
                self.templates.worked(record.template)
                self.pool.rest()
            self._ready(machine)
        except HostFull as error:
            failure = _full(error), error.detail
            blame_host = True
        except TooSlow as error:
            failure = StopReason.BOOT_FAILED, error.detail
            blame_host = True
        except VmError as error:
            failure = StopReason.BOOT_FAILED, error.detail
        except (OSError, TimeoutError, KeyError) as error:
            failure = StopReason.BOOT_FAILED, f"{type(error).__name__}: {error}"
        except asyncio.CancelledError:
            if self._closing and machine.ending is None:
                record.enter(MachineState.QUEUED)
                self._save(record)
            raise
        finally:
            self._booting.discard(record.machine)
            if not self._closing:
                self._next_boots()
        if failure is not None:
            log.warning("machine %s did not start: %s", record.machine, failure[1])
            if machine.ending is None:
                await self._not_started(machine, *failure, blame_host=blame_host)
            return
        await self.keeper.keep(machine)

    def _prepare(self, record: Record) -> None:
        """Decide how a machine starts whose turn it is, and on which layers."""
        if record.origin in (Origin.RESUME, Origin.FORK) or not record.fresh:
            if record.origin not in (Origin.RESUME, Origin.FORK):
                record.origin = Origin.COLD
            return
        if self.config.clones and not record.note and not record.spec.image:
            template = self.templates.find(size_of(record))
            if template is not None and template.image == record.image:
                record.origin, record.template = Origin.CLONE, template.key
                record.disks = [secrets.token_hex(16), template.disk]
                return
            record.note = "booted, because there is no template for a machine of this size yet"
        record.origin, record.template = Origin.COLD, ""
        record.disks = [secrets.token_hex(16)]

    async def _not_started(self, machine: Machine, reason: StopReason, detail: str, *, blame_host: bool) -> None:
        """What follows a start that failed; `blame_host`: for want of room or time, whatever it was started from."""
        record = machine.record
        stage = list(record.stages)[-1] if record.stages else ""
        if machine.channel is not None:
            await machine.channel.close()
            machine.channel = None
        with suppress(VmError):
            await self.starter.release(record)
        if record.origin is Origin.CLONE and record.template:
            # Whatever is wrong with its template, a machine can still be had the slow way
            if not blame_host:
                self.templates.failed(record.template, stage)
            record.note = f"booted, because it could not be cloned: {detail}"[:300]
            record.origin, record.disks, record.template = Origin.COLD, [], ""
            self.new_body(record)
            record.enter(MachineState.QUEUED)
            self._save(record)
            self.enqueue(machine)
            return
        if record.origin is Origin.RESUME:
            # Only a memory that was looked at and found bad is given up: else it is as good as before
            if not record.committed and (blame_host or stage != "domain"):
                self._enter(machine, MachineState.SUSPENDED, detail=detail)
                return
            await self._drop_memory(record)
            reason = StopReason.RESUME_FAILED
        self.stopped(machine, reason, detail)

    def save_again(self) -> None:
        """Write down what could not be written before."""
        for name in list(self._unsaved):
            if name in self.known:
                self._save(self.known[name].record)
            else:
                self._unsaved.discard(name)

    async def _drop_memory(self, record: Record) -> None:
        # Gigabytes: taking them from a file system is no work for the event loop
        memory = self.layout.memory(record.machine)
        await self.lanes.run("memory", lambda: memory.unlink(missing_ok=True), deadline=_SAVING)

    def _ready(self, machine: Machine) -> None:
        record = machine.record
        record.fresh = False
        record.memory = ""
        self._enter(machine, MachineState.READY)
        log.info("machine %s is ready (%s): %s", record.machine, record.origin, record.stages)
        self._merge_if_long(machine)

    def _observed(self, machine: Machine, state: MachineState, detail: str) -> None:
        self._enter(machine, state, detail=detail)

    # -- ending

    def _end(
        self, machine: Machine, reason: StopReason, detail: str, *, ask: bool = False, again: bool = False
    ) -> None:
        if machine.ending is None:
            work = self._ended(machine, reason, detail, ask=ask, again=again)
            machine.ending = spawn(work, name=f"end {machine.record.machine}")

    async def _ended(self, machine: Machine, reason: StopReason, detail: str, *, ask: bool, again: bool) -> None:
        record = machine.record
        if machine in self._queue:
            self._queue.remove(machine)
        self.doors.shut(record.body)
        channel = machine.channel
        if ask and channel is not None and record.state is MachineState.READY:
            with suppress(VmError, TimeoutError):
                async with asyncio.timeout(_SHUTDOWN_PATIENCE):
                    await call(await channel.open(timeout=1), "shutdown")
        if machine.work is not None:
            machine.work.cancel()
            await asyncio.wait([machine.work])
        if machine.channel is not None:
            await machine.channel.close()
            machine.channel = None
        with suppress(VmError):
            # Once more before its domain is gone: the last seconds count too
            await self.keeper.measure(record)
        try:
            await self.starter.release(record)
        except VmError as error:
            detail = f"{detail}; not everything of it could be removed: {error.detail}".removeprefix("; ")
            log.exception("machine %s", record.machine)
            again = False
        machine.ending = None
        if again and not self._closing:
            log.warning("machine %s is booted once more: %s", record.machine, detail)
            if record.fresh and record.origin in (Origin.COLD, Origin.CLONE, Origin.POOL):
                record.disks = []
            self.new_body(record)
            record.enter(MachineState.QUEUED)
            self._save(record)
            self.enqueue(machine)
        else:
            self.stopped(machine, reason, detail)

    # -- state

    def _get(self, machine: MachineId) -> Machine:
        try:
            return self.known[machine]
        except KeyError:
            raise MachineGone(f"no machine {machine} here") from None

    def _enter(
        self, machine: Machine, state: MachineState, *, reason: StopReason | None = None, detail: str = ""
    ) -> None:
        machine.record.enter(state, reason=reason, detail=detail)
        self._save(machine.record)
        self._announce(machine)

    def _save(self, record: Record) -> None:
        try:
            record.save(self.layout)
            self._unsaved.discard(record.machine)
        except (OSError, HostFull) as error:
            # The machine goes on without: a full disk must not take the node with it, and it is tried again and again
            self._unsaved.add(record.machine)
            log.error("machine %s: its record could not be written: %s", record.machine, error)

    def _announce(self, machine: Machine) -> None:
        machine.changed.set()
        machine.changed = asyncio.Event()
        info = self.info(machine)
        for subscriber in list(self._subscribers):
            try:
                subscriber.put_nowait(info)
            except asyncio.QueueFull:
                # It misses something either way; ended, it knows that, and lists everything when it comes back
                self._subscribers.discard(subscriber)
                subscriber.get_nowait()
                subscriber.put_nowait(None)

    def _require_wanted(self, machine: Machine) -> None:
        """Whoever asked for it may have been overtaken by somebody who stopped it."""
        record = machine.record
        if self.known.get(record.machine) is not machine or record.state is not MachineState.QUEUED or machine.ending:
            raise MachineGone(f"machine {record.machine} was stopped meanwhile")

    def _require_running(self, machine: Machine) -> None:
        if machine.record.state not in RUNNING or machine.ending is not None:
            raise MachineGone(f"machine {machine.record.machine} is {machine.record.state}")

    async def _make_room(self, record: Record) -> None:
        """Return if the host has room for one more such machine, taking it from the pool if need be. HostFull."""
        free = shutil.disk_usage(self.layout.machines).free
        if free < self.config.disk_reserve_mib * 2**20:
            raise HostFull(f"only {free // 2**20} MiB are free on the disk of {self.layout.machines}")
        if self._lacking_mib(record) > 0 and self.pool.ready:
            await self.pool.give_back(self._lacking_mib(record))
        if self._lacking_mib(record) > 0:
            taken = sum(machine.record.memory_mib for machine in self._with_memory())
            raise HostFull(f"{taken} MiB of memory are given to machines already, {record.memory_mib} more do not fit")

    def _with_memory(self) -> Sequence[Machine]:
        # Those that wait for their turn have none yet: whether there is room for them is asked again when it comes
        without = (*_WITHOUT_DOMAIN, MachineState.QUEUED)
        return [machine for machine in self.known.values() if machine.record.state not in without]

    def _lacking_mib(self, record: Record) -> int:
        with_memory = self._with_memory()
        return lacking_mib(
            wanted=record.memory_mib,
            given=sum(machine.record.memory_mib for machine in with_memory) + self.pool.committed_mib,
            coming=sum(m.record.memory_mib for m in with_memory if m.record.state not in RUNNING),
            reserve=self.config.memory_reserve_mib,
            total=memory_total() // 2**20,
            available=memory_available() // 2**20,
        )


_WITHOUT_DOMAIN = (MachineState.STOPPED, MachineState.SUSPENDED)
_SETTLED = (MachineState.READY, MachineState.STOPPED, MachineState.SUSPENDED)


def _full(error: HostFull) -> StopReason:
    return StopReason.NO_CAPACITY if "memory" in error.detail else StopReason.DISK_FULL


def _require_sane(spec: MachineSpec, secrets: Sequence[Secret]) -> None:
    if not _MACHINE.fullmatch(spec.machine):
        raise HypervisorError("a machine's id is 32 lower-case hexadecimal digits")
    if not _HOSTNAME.fullmatch(spec.identity.hostname):
        raise HypervisorError("a host name is 1 to 63 letters, digits and hyphens")
    for name, (lowest, highest) in _LIMITS.items():
        if not lowest <= getattr(spec, name) <= highest:
            raise HypervisorError(f"{name} must be {lowest} to {highest}")
    _require_policy(spec.policy, secrets)


def _require_policy(policy: EgressPolicy, secrets: Sequence[Secret]) -> None:
    try:
        policy_of(policy)
        require_sane(secrets)
    except ValueError as error:
        raise HypervisorError(f"the egress policy: {error}") from error
