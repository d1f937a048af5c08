"""Owns the machines of one node: their states, the queue of boots, and whoever wants to know of changes."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from vm.api import MachineId, MachineInfo, MachineSpec, MachineState, StopReason
from vm.background import spawn
from vm.errors import HostFull, HypervisorError, MachineExists, MachineGone, StreamReset, VmError
from vm.guest.calls import call
from vm.guest.channel import Channel, GuestStream
from vm.host.kvm import boot_id
from vm.libvirt import domains
from vm.libvirt.connection import Connection, Event, Happening
from vm.node.config import NodeConfig
from vm.node.hostinfo import memory_available, memory_total
from vm.node.lanes import Lanes
from vm.node.records import Names, Record
from vm.node.start import Starter, expect_ok
from vm.storage.images import image_find
from vm.storage.layout import Layout

log = logging.getLogger("atoll.node")

_MACHINE = re.compile(r"[0-9a-f]{32}")
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_LIMITS = {"memory_mib": (128, 65_536), "vcpus": (1, 32), "disk_gib": (1, 1024)}
_SHUTDOWN_PATIENCE = 3.0
_SUBSCRIBER_ROOM = 1000
_CALL_PATIENCE = 10.0
_MISSES = 2  # heartbeats in a row without an answer, until a machine is LOST
MAX_BOOTS = 3


@dataclass(slots=True, eq=False)
class Machine:
    """One machine while the node lives. `work` boots or keeps it; `ending` is set once something ends it."""

    record: Record
    channel: Channel | None = None
    work: asyncio.Task[None] | None = None
    ending: asyncio.Task[None] | None = None
    nudge: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    link_trouble: str = ""


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
        self.starter = Starter(config, layout, names, lanes, conn, accelerator)
        self.known: dict[MachineId, Machine] = {}
        self._queue: list[Machine] = []
        self._booting: set[MachineId] = set()
        self._subscribers: set[asyncio.Queue[MachineInfo | None]] = set()
        self._boot_id = boot_id()
        self._closing = False

    # -- verbs

    async def start(self, spec: MachineSpec) -> MachineInfo:
        """See vm.api.Node.machine_start."""
        _require_sane(spec)
        before = self.known.get(spec.machine)
        if before is not None and before.record.state is not MachineState.STOPPED:
            raise MachineExists(f"machine {spec.machine} is {before.record.state}")
        # Its disk lies over the image it was made from, whatever is asked for now
        kept = before is not None and self.layout.disk(spec.machine).exists()
        wanted = before.record.image if before and kept else spec.image or self.config.image
        image = image_find(self.config.image_cache, wanted)
        self._require_room(spec)
        record = Record(
            spec=spec,
            image=image.hash,
            state=MachineState.QUEUED,
            since=time.time(),
            boot_id=self._boot_id,
            domain=self.names.of(spec.machine),
            namespace=self.names.of(spec.machine),
        )
        record.save(self.layout)
        machine = self.known[spec.machine] = Machine(record)
        self.enqueue(machine)
        return self.info(machine)

    async def wait(self, machine: MachineId, timeout: float) -> MachineInfo:
        """See vm.api.Node.machine_wait."""
        known = self._get(machine)
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while known.record.state not in (MachineState.READY, MachineState.STOPPED):
                    await known.changed.wait()
        return self.info(known)

    async def get(self, machine: MachineId) -> MachineInfo:
        """See vm.api.Node.machine_get."""
        return self.info(self._get(machine))

    async def list(self) -> list[MachineInfo]:
        """See vm.api.Node.machine_list."""
        return [self.info(machine) for machine in self.known.values()]

    async def stop(self, machine: MachineId) -> MachineInfo:
        """See vm.api.Node.machine_stop."""
        known = self._get(machine)
        while known.record.state is not MachineState.STOPPED:
            # One that is ending already may be about to boot once more
            self._end(known, StopReason.REQUESTED, "", ask=True)
            if known.ending is not None:
                # Whoever asked may go away; the machine stops all the same
                await asyncio.shield(known.ending)
        return self.info(known)

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
        await self.lanes.run(known.record.domain, lambda: shutil.rmtree(place, ignore_errors=True), deadline=60)
        self.lanes.forget(known.record.domain)

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
        return machine.record.info(self._queue.index(machine) + 1 if machine in self._queue else 0)

    def enqueue(self, machine: Machine) -> None:
        """Let the machine boot when it is its turn."""
        self._queue.append(machine)
        self._announce(machine)
        self._next_boots()

    def adopt(self, machine: Machine) -> None:
        """Take over a machine that runs already."""
        machine.channel = self.starter.channel(machine.record.machine, self._link_changed(machine))
        machine.work = spawn(self._keep(machine), name=f"keep {machine.record.machine}")

    def stopped(self, machine: Machine, reason: StopReason, detail: str) -> None:
        """Record that a machine has stopped."""
        record = machine.record
        with suppress(OSError):
            record.disk_bytes = self.layout.disk(record.machine).stat().st_blocks * 512
        self._enter(machine, MachineState.STOPPED, reason=reason, detail=detail)

    def happened(self, event: Event) -> None:
        """libvirt told something by itself."""
        machine = self.known.get(event.domain.removeprefix(self.names.prefix))
        if machine is None or machine.ending is not None or machine.record.state is MachineState.STOPPED:
            return
        log.info("machine %s: libvirt says %s %s", machine.record.machine, event.what.value, event.detail)
        if event.what is Happening.DISK_FULL:
            self._end(machine, StopReason.DISK_FULL, "the host's disk had no room for what the guest wrote")
        elif event.what is Happening.STOPPED and event.reason is not None:
            if machine.record.state is not MachineState.STARTING:
                self._end(machine, event.reason, event.detail)
                return
            # A kernel that dies before anybody was let in has lost nothing: under emulation on a busy host it happens
            again = event.reason is StopReason.GUEST_CRASHED and machine.record.boots < MAX_BOOTS
            self._end(machine, StopReason.BOOT_FAILED, event.detail, again=again)

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
        try:
            self._enter(machine, MachineState.STARTING)
            machine.channel = await self.starter.start(record, self._link_changed(machine))
            record.stages["queue"] = queued
            self._enter(machine, MachineState.READY)
            log.info("machine %s is ready: %s", record.machine, record.stages)
        except HostFull as error:
            failure = _full(error), error.detail
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
                self.stopped(machine, *failure)
            return
        await self._keep(machine)

    # -- keeping

    async def _keep(self, machine: Machine) -> None:
        """Ask the agent how it is, again and again: sets its clock, notices one that is gone, or another one."""
        misses = 0
        seen = _Seen()
        while True:
            try:
                async with asyncio.timeout(_CALL_PATIENCE):
                    seen = await self._heartbeat(machine, seen)
                misses = 0
            except (VmError, TimeoutError):
                misses += 1
            with suppress(VmError, OSError):
                await self._measure(machine)
            up = machine.channel is not None and machine.channel.up
            if misses == 0 and machine.record.state is not MachineState.READY:
                self._enter(machine, MachineState.READY)
            elif misses >= _MISSES and machine.record.state is MachineState.READY:
                self._enter(machine, MachineState.LOST, detail=machine.link_trouble or "its agent does not answer")
            machine.nudge.clear()
            # A link that broke comes back at once or not for long: look again soon
            patience = self.config.heartbeat if up and misses == 0 else 1.0
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await machine.nudge.wait()

    async def _heartbeat(self, machine: Machine, seen: _Seen) -> _Seen:
        channel = machine.channel
        if channel is None:
            raise StreamReset("no channel")
        links = channel.links
        uptime = float((await expect_ok(call(await channel.open(timeout=_CALL_PATIENCE), "ping")))["uptime"])
        if uptime < seen.uptime:
            # Another agent, which knows nothing of who it is, nor of the streams of a link that it took over
            if links == seen.links:
                channel.restart("its agent was started anew")
            await self.starter.identify(machine.record, channel)
        await expect_ok(call(await channel.open(timeout=_CALL_PATIENCE), "clock", {"time": time.time()}))
        return _Seen(uptime, links)

    async def _measure(self, machine: Machine) -> None:
        record = machine.record
        state = await self.lanes.run(
            record.domain, lambda: domains.domain_state(self.conn, record.domain), deadline=_CALL_PATIENCE
        )
        if state is not None:
            record.cpu_seconds = round(state.cpu_seconds, 3)
        record.disk_bytes = self.layout.disk(record.machine).stat().st_blocks * 512

    def _link_changed(self, machine: Machine) -> _LinkChanged:
        return _LinkChanged(machine)

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
        try:
            await self.starter.release(record)
        except VmError as error:
            detail = f"{detail}; not everything of it could be removed: {error.detail}".removeprefix("; ")
            log.exception("machine %s", record.machine)
            again = False
        machine.ending = None
        if again and not self._closing:
            log.warning("machine %s is booted once more: %s", record.machine, detail)
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
        except (OSError, HostFull) as error:
            # The machine goes on without: a full disk must not take the node with it, and the next change tries again
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

    def _require_room(self, spec: MachineSpec) -> None:
        if len(self._queue) >= self.config.queue_limit:
            raise HostFull(f"{len(self._queue)} machines wait for their turn already")
        free = shutil.disk_usage(self.layout.machines).free
        if free < self.config.disk_reserve_mib * 2**20:
            raise HostFull(f"only {free // 2**20} MiB are free on the disk of {self.layout.machines}")
        taken = sum(
            machine.record.spec.memory_mib
            for machine in self.known.values()
            if machine.record.state is not MachineState.STOPPED
        )
        # Half of it is page cache and pages that guests never touch; what is really free is asked for as well
        if (taken + spec.memory_mib) * 2**20 > memory_total() * 3 // 2 or memory_available() < spec.memory_mib * 2**19:
            raise HostFull(f"{taken} MiB of memory are given to machines already, {spec.memory_mib} more do not fit")


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the last heartbeat saw: the agent's uptime in seconds, and which link it was."""

    uptime: float = 0.0
    links: int = 0


@dataclass(frozen=True, slots=True)
class _LinkChanged:
    machine: Machine

    def __call__(self, up: bool, why: str) -> None:
        machine = self.machine
        machine.link_trouble = why
        if machine.channel is not None and machine.channel.breaches:
            machine.record.detail = f"{why or 'its agent answers again'} ({machine.channel.breaches} breaches so far)"
        if up:
            machine.nudge.set()


def _full(error: HostFull) -> StopReason:
    return StopReason.BOOT_FAILED if "memory" in error.detail else StopReason.DISK_FULL


def _require_sane(spec: MachineSpec) -> None:
    if not _MACHINE.fullmatch(spec.machine):
        raise HypervisorError("a machine's id is 32 lower-case hexadecimal digits")
    if not _HOSTNAME.fullmatch(spec.identity.hostname):
        raise HypervisorError("a host name is 1 to 63 letters, digits and hyphens")
    for name, (lowest, highest) in _LIMITS.items():
        if not lowest <= getattr(spec, name) <= highest:
            raise HypervisorError(f"{name} must be {lowest} to {highest}")
