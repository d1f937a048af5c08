"""A guest that lies to its node costs itself its machine, never the node's watch over it."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vm.api import Identity, MachineSpec, MachineState
from vm.errors import HostFull, MachineFailed, VmError, VolumeBusy
from vm.node.attaching import Attaching
from vm.node.config import NodeConfig
from vm.node.keeper import Keeper, Machine
from vm.node.records import Record
from vm.node.templates import warm_up

UNUSED: Any = None
DEEP = "[" * 100_000 + "]" * 100_000


class Guest:
    """A machine's channel to an agent that answers each method with whatever text it is told to; `asked` are all."""

    up, links, breaches = True, 1, 0

    def __init__(self, **says: str) -> None:
        self.says = says
        self.asked: list[str] = []
        self.full = False
        self.refused = self.restarts = 0

    async def open(self, *, own: bool, **_how: Any) -> Stream:
        assert own, "the node has streams of its own"
        if self.full:
            self.refused += 1
            raise HostFull("too many open streams")
        return Stream(self)

    def restart(self, why: str) -> None:
        self.restarts += 1


class Stream:
    """One call: the request as it was written, then the answer."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._answer = b""

    async def write(self, data: bytes) -> None:
        method = json.loads(data[4:])["method"]
        self._guest.asked.append(method)
        answer = self._guest.says.get(method, '{"ok": null}').encode()
        self._answer = struct.pack(">I", len(answer)) + answer

    async def read(self, limit: int = 65_536) -> bytes:
        piece, self._answer = self._answer[:limit], self._answer[limit:]
        return piece

    async def end(self) -> None:
        """Nothing follows a call's request here."""

    async def abort(self) -> None:
        """It holds nothing."""


class Watched:
    """A machine that is READY, and its keeper at work; `states` are those that it was found in since."""

    def __init__(self, guest: Guest) -> None:
        channel: Any = guest
        spec = MachineSpec("a" * 32, 512, 1, 10, Identity("box", {}))
        record = Record(spec, "hash", MachineState.READY, 1.0, "boot", "a" * 32, [])
        self.machine = Machine(record, channel=channel)
        self.states: list[MachineState] = []
        lanes: Any = SimpleNamespace(run=_nothing)
        names: Any = SimpleNamespace(of=str)
        config = NodeConfig(Path("/"), Path("/"), Path("/"))
        keeper = Keeper(config, names, lanes, UNUSED, UNUSED, self._enter, lambda record: None)
        self.keeping = asyncio.ensure_future(keeper.keep(self.machine))

    def _enter(self, machine: Machine, state: MachineState, detail: str) -> None:
        machine.record.state = state
        self.states.append(state)

    async def becomes(self, state: MachineState) -> None:
        """Wait until it is found in that state, without the waits between two looks."""
        async with asyncio.timeout(10):
            while self.machine.record.state is not state:
                if self.keeping.done():
                    await self.keeping
                self.machine.nudge.set()
                await asyncio.sleep(0)


async def _nothing(*_what: Any, **_more: Any) -> None:
    pass


@pytest.fixture
async def watched() -> AsyncIterator[Callable[[Guest], Watched]]:
    made: list[Watched] = []

    def watch(guest: Guest) -> Watched:
        made.append(Watched(guest))
        return made[-1]

    yield watch
    for one in made:
        one.keeping.cancel()
        with suppress(asyncio.CancelledError):
            await one.keeping


@pytest.mark.parametrize(
    "lie",
    [
        "null",
        "[]",
        '{"ok": null}',
        '{"ok": []}',
        '{"ok": {"uptime": null}}',
        '{"ok": {"uptime": "1"}}',
        '{"ok": {"uptime": [1]}}',
        '{"ok": {"uptime": NaN}}',
        '{"ok": {"uptime": Infinity}}',
        '{"ok": {"uptime": -1}}',
        f'{{"ok": {{"uptime": 1{"0" * 400}}}}}',
        f'{{"ok": {{"uptime": 1{"0" * 5000}}}}}',
        f'{{"ok": {DEEP}}}',
        f'{{"error": {DEEP}}}',
        '{"error": null}',
        f'{{"ok": {{"uptime": 5.5, "more": "{"x" * 262_144}"}}}}',
    ],
    ids=lambda lie: lie[:40],
)
async def test_a_lie_is_no_answer(watched: Callable[[Guest], Watched], lie: str) -> None:
    """Whatever a heartbeat hears that makes no sense: it is LOST, is watched on, and READY once it makes sense."""
    guest = Guest(ping=lie)
    watch = watched(guest)
    await watch.becomes(MachineState.LOST)
    guest.says["ping"] = '{"ok": {"version": 1, "uptime": 5.5}}'
    await watch.becomes(MachineState.READY)
    assert watch.states == [MachineState.LOST, MachineState.READY]


async def test_a_machine_that_is_much_used_is_not_lost(watched: Callable[[Guest], Watched]) -> None:
    """A heartbeat for which there is no stream says nothing of the agent, and breaks nobody's streams."""
    guest = Guest(ping='{"ok": {"version": 1, "uptime": 5.5}}')
    guest.full = True
    watch = watched(guest)
    async with asyncio.timeout(10):
        while guest.refused < 10:
            watch.machine.nudge.set()
            await asyncio.sleep(0)
    assert (watch.states, guest.restarts, watch.keeping.done()) == ([], 0, False)
    guest.full = False
    guest.says["ping"] = "null"
    await watch.becomes(MachineState.LOST)


@pytest.mark.parametrize(
    ("lie", "kind"),
    [
        ('{"ok": ' + DEEP + "}", MachineFailed),
        ('{"error": []}', MachineFailed),
        ('{"error": "EBUSY"}', MachineFailed),
        ('{"error": {"code": ["EBUSY"], "message": {}}}', MachineFailed),
        ('{"error": {"code": "EBUSY", "message": [[]]}}', VolumeBusy),
    ],
    ids=lambda lie: str(lie)[:40],
)
async def test_a_lie_about_a_volume_is_a_failure(lie: str, kind: type[VmError]) -> None:
    """Of a volume that comes or goes it is told as one; a root that cannot grow keeps nothing from starting."""
    attaching = Attaching(UNUSED, UNUSED, UNUSED, UNUSED, UNUSED, UNUSED)
    channel: Any = Guest(**{"volume.grow": lie})
    with pytest.raises(kind):
        await attaching.grow(channel, "serial")
    await attaching.grow_root(channel)


async def test_a_guests_words_can_be_shown_and_kept() -> None:
    """A page is told them, and a database keeps them, which neither does with a NUL or half a surrogate."""
    attaching = Attaching(UNUSED, UNUSED, UNUSED, UNUSED, UNUSED, UNUSED)
    words = {"code": "EBUSY", "message": "held by \0\ud800\x1b[31m" + "x" * 1000}
    channel: Any = Guest(**{"volume.grow": json.dumps({"error": words})})
    with pytest.raises(VolumeBusy) as raised:
        await attaching.grow(channel, "serial")
    assert raised.value.detail == "held by    [31m" + "x" * 485


@pytest.mark.parametrize(
    "lie",
    ['{"ok": null}', '{"ok": {}}', '{"ok": {"pid": "1"}}', '{"ok": {"pid": 0}}', f'{{"ok": {{"pid": {DEEP}}}}}'],
    ids=lambda lie: lie[:40],
)
async def test_a_process_that_is_none_is_not_waited_for(lie: str) -> None:
    """A machine that is warmed up, maybe from somebody's own snapshot, fails as any other that does not come up."""
    guest = Guest(spawn=lie)
    channel: Any = guest
    with pytest.raises(VmError):
        await warm_up(channel)
    assert guest.asked == ["spawn"]
