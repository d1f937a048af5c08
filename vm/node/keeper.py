"""Keeps an eye on a running machine: sets its clock, notices an agent that is gone or another one, measures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from vm.api import MachineState
from vm.errors import StreamReset, VmError
from vm.guest.calls import call
from vm.guest.channel import Channel
from vm.libvirt import domains
from vm.libvirt.connection import Connection
from vm.node.config import NodeConfig
from vm.node.lanes import Lanes
from vm.node.records import Names, Record
from vm.node.start import Starter, expect_ok
from vm.storage.layout import Layout

_CALL_PATIENCE = 10.0
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
    """Keeps machines; `enter` is told the state that a look found."""

    def __init__(
        self,
        config: NodeConfig,
        layout: Layout,
        names: Names,
        lanes: Lanes,
        conn: Connection,
        starter: Starter,
        enter: Callable[[Machine, MachineState, str], None],
    ) -> None:
        self._config = config
        self._layout = layout
        self._names = names
        self._lanes = lanes
        self._conn = conn
        self._starter = starter
        self._enter = enter

    async def keep(self, machine: Machine) -> None:
        """Ask the agent how it is, again and again, until cancelled."""
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
        uptime = float((await expect_ok(call(await channel.open(timeout=_CALL_PATIENCE), "ping")))["uptime"])
        if uptime < seen.uptime:
            # Another agent, which knows nothing of who it is, nor of the streams of a link that it took over
            if links == seen.links:
                channel.restart("its agent was started anew")
            await self._starter.identify(machine.record, channel)
        await expect_ok(call(await channel.open(timeout=_CALL_PATIENCE), "clock", {"time": time.time()}))
        return _Seen(uptime, links)

    async def measure(self, record: Record) -> None:
        """Bring the record's numbers up to date. Whatever VmError libvirt gives; OSError without its disk."""
        name = self._names.of(record.body)
        state = await self._lanes.run(name, lambda: domains.domain_state(self._conn, name), deadline=_CALL_PATIENCE)
        if state is not None:
            record.cpu_seconds = round(record.cpu_before + state.cpu_seconds, 3)
        self.measure_disk(record)

    def measure_disk(self, record: Record) -> None:
        """What only this machine needs: its own layer, and its memory while it is suspended."""
        kept = [self._layout.disk(record.disks[0])] if record.disks else []
        if record.state is MachineState.SUSPENDED:
            kept.append(self._layout.memory(record.machine))
        total = 0
        for path in kept:
            with suppress(FileNotFoundError):
                total += path.stat().st_blocks * 512
        record.disk_bytes = total
