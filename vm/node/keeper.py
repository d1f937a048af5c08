"""Keeps an eye on a running machine: sets its clock, notices an agent that is gone or another one, measures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Set
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from vm.api import MachineState
from vm.errors import HostFull, StreamReset, VmError, VolumeBusy
from vm.guest.channel import Channel
from vm.libvirt import domains
from vm.libvirt.connection import Connection
from vm.node.asking import ask, seconds_of
from vm.node.config import NodeConfig
from vm.node.lanes import Lanes
from vm.node.records import Names, Record
from vm.node.start import Starter
from vm.storage.layout import LayerId, Layout

_CALL_PATIENCE = 10.0
_SHORT = 5.0
_MISSES = 2  # heartbeats in a row without an answer, until a machine is LOST
_GIVEN_UP = 4  # and until its link is made anew: whoever waits for an answer on it would wait for ever


@dataclass(slots=True, eq=False)
class Machine:
    """One machine while the node lives. `work` boots or keeps it; `ending` is set once something ends it.

    `busy` is held by whatever must not meet another of its kind: a suspend, a fork.
    """

    record: Record
    channel: Channel | None = None
    work: asyncio.Task[None] | None = None
    ending: asyncio.Task[None] | None = None
    nudge: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    link_trouble: str = ""

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Hold `busy`, waited for as long as a short piece of work may take. VolumeBusy."""
        try:
            async with asyncio.timeout(_SHORT):
                await self.busy.acquire()
        except TimeoutError:
            raise VolumeBusy("something else is being done with the machine: try again") from None
        try:
            yield
        finally:
            self.busy.release()

    def link_changed(self, up: bool, why: str) -> None:
        """The channel tells that its link came or went."""
        self.link_trouble = why
        if self.channel is not None and self.channel.breaches:
            self.record.detail = f"{why or 'its agent answers again'} ({self.channel.breaches} breaches so far)"
        if up:
            self.nudge.set()


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the last heartbeat saw: the agent's uptime in seconds, and which link it was."""

    uptime: float = 0.0
    links: int = 0


class Keeper:
    """Keeps machines; `enter` is told the state that a look found, `measure_disk` brings that number up to date."""

    def __init__(
        self,
        config: NodeConfig,
        names: Names,
        lanes: Lanes,
        conn: Connection,
        starter: Starter,
        enter: Callable[[Machine, MachineState, str], None],
        measure_disk: Callable[[Record], None],
    ) -> None:
        self._config = config
        self._names = names
        self._lanes = lanes
        self._conn = conn
        self._starter = starter
        self._enter = enter
        self._measure_disk = measure_disk

    async def keep(self, machine: Machine) -> None:
        """Ask the agent how it is, again and again, until cancelled."""
        misses = 0
        seen = _Seen()
        while True:
            try:
                async with asyncio.timeout(_CALL_PATIENCE):
                    seen = await self._heartbeat(machine, seen)
                misses = 0
            except HostFull:
                pass  # nobody was asked
            except (VmError, TimeoutError):
                misses += 1
            with suppress(VmError, OSError):
                await self.measure(machine.record)
            up = machine.channel is not None and machine.channel.up
            if misses == 0 and machine.record.state is MachineState.LOST:
                self._enter(machine, MachineState.READY, "")
            elif misses >= _MISSES and machine.record.state is MachineState.READY:
                self._enter(machine, MachineState.LOST, machine.link_trouble or "its agent does not answer")
            if misses and misses % _GIVEN_UP == 0 and machine.channel is not None:
                machine.channel.restart("its agent has not answered for a while")
            machine.nudge.clear()
            # A link that broke comes back at once or not for long: look again soon
            patience = self._config.heartbeat if up and misses == 0 else 1.0
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await machine.nudge.wait()

    async def _heartbeat(self, machine: Machine, seen: _Seen) -> _Seen:
        channel = machine.channel
        if channel is None:
            raise StreamReset("no channel")
        links = channel.links
        uptime = seconds_of(await ask(channel, "ping", patience=_CALL_PATIENCE), "uptime")
        if uptime < seen.uptime:
            # Another agent, which knows nothing of who it is, nor of the streams of a link that it took over
            if links == seen.links:
                channel.restart("its agent was started anew")
            await self._starter.identify(machine.record, channel)
        await ask(channel, "clock", {"time": time.time()}, patience=_CALL_PATIENCE)
        return _Seen(uptime, links)

    async def measure(self, record: Record) -> None:
        """Bring the record's numbers up to date. Whatever VmError libvirt gives; OSError without its disk."""
        name = self._names.of(record.body)
        state = await self._lanes.run(name, lambda: domains.domain_state(self._conn, name), deadline=_CALL_PATIENCE)
        if state is not None:
            record.cpu_seconds = round(record.cpu_before + state.cpu_seconds, 3)
        self._measure_disk(record)


def disk_bytes(layout: Layout, record: Record, *, shared: Set[LayerId]) -> int:
    """What the machine needs of the host's disk, in bytes: its layers, and its memory while it is suspended.

    A layer that a fork needs as well counts for both: neither could do without it. Those `shared` with everybody, the
    templates', count for nobody.
    """
    kept = [layout.disk(layer) for layer in record.disks if layer not in shared]
    if record.state is MachineState.SUSPENDED:
        kept.append(layout.memory(record.machine))
    total = 0
    for path in kept:
        with suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total
