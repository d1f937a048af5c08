"""A session carries a byte stream to a page and back: in order, bounded, and left behind cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import pytest

from ide.xterm_bridge.flow import INPUT_LIMIT, STOP_ABOVE
from ide.xterm_bridge.session import Attached, Session, TerminalError


class Pipe:
    """A terminal's stream over two queues; `output` is what its process prints, `typed` what it is given."""

    def __init__(self) -> None:
        self.output: asyncio.Queue[bytes] = asyncio.Queue()
        self.typed = bytearray()
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.aborted = False
        self._rest = b""

    async def read(self, limit: int) -> bytes:
        data = self._rest or await self.output.get()
        if data == b"break":
            raise TerminalError("stream_reset", "the machine dropped the terminal", retry=True)
        self._rest = data[limit:]
        return data[:limit]

    async def write(self, data: bytes) -> None:
        await self.may_write.wait()
        self.typed += data

    async def abort(self) -> None:
        self.aborted = True


class Host:
    """Holds one terminal, `t1`, whose output starts at byte 100."""

    def __init__(self) -> None:
        self.pipe = Pipe()
        self.calls: list[tuple[Any, ...]] = []

    async def open(self, *, cols: int, rows: int, cwd: str | None) -> str:
        self.calls.append(("open", cols, rows, cwd))
        return "t1"

    async def attach(self, terminal: str, *, offset: int | None, cols: int, rows: int) -> Attached:
        self.calls.append(("attach", terminal, offset, cols, rows))
        if terminal != "t1":
            raise TerminalError("no_terminal", "there is no such terminal", retry=False)
        start = 100 if offset is None else offset
        return Attached(id=terminal, stream=self.pipe, offset=start, end=start, truncated=offset is None)

    async def resize(self, terminal: str, *, cols: int, rows: int) -> None:
        self.calls.append(("resize", terminal, cols, rows))

    async def list(self) -> Sequence[Mapping[str, Any]]:
        return [{"id": "t1", "title": "bash", "running": False, "started": 1.0, "exit": 3, "secret": 1}]

    async def close(self, terminal: str) -> None:
        self.calls.append(("close", terminal))


class Page:
    """What the page received."""

    def __init__(self) -> None:
        self.texts: list[dict[str, Any]] = []
        self.received = bytearray()
        self.code: int | None = None

    async def send_bytes(self, data: bytes) -> None:
        self.received += data

    async def send_text(self, text: str) -> None:
        self.texts.append(json.loads(text))

    async def close(self, code: int) -> None:
        self.code = code

    def last(self, kind: str) -> dict[str, Any]:
        return next(message for message in reversed(self.texts) if message["type"] == kind)


class Rig:
    def __init__(self) -> None:
        self.host = Host()
        self.page = Page()
        self.session = Session(self.host, self.page)
        self.running = asyncio.ensure_future(self.session.run())

    def say(self, **message: Any) -> None:
        self.session.text(json.dumps(message))


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    rig.running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await rig.running


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_new_terminal_is_opened_attached_and_carries_bytes_both_ways(rig: Rig) -> None:
    rig.say(type="open", cols=80, rows=24)
    rig.session.data(b"ls\n")
    rig.host.pipe.output.put_nowait(b"\x1b[1mhello\x1b[0m")
    await settle()

    assert rig.host.calls == [("open", 80, 24, None), ("attach", "t1", None, 80, 24)]
    assert rig.page.texts[0] == {"type": "attached", "id": "t1", "offset": 100, "end": 100, "truncated": True}
    assert bytes(rig.page.received) == b"\x1b[1mhello\x1b[0m"
    assert bytes(rig.host.pipe.typed) == b"ls\n"
    assert rig.page.last("input") == {"type": "input", "bytes": 3}


async def test_a_reader_that_does_not_acknowledge_is_sent_a_mebibyte_and_no_more(rig: Rig) -> None:
    rig.say(type="attach", id="t1", offset=500, cols=80, rows=24)
    for _ in range(40):
        rig.host.pipe.output.put_nowait(b"x" * 65_536)
    await settle()
    assert len(rig.page.received) == STOP_ABOVE

    rig.say(type="ack", offset=500 + STOP_ABOVE)
    await settle()
    assert len(rig.page.received) == 2 * STOP_ABOVE


async def test_typing_into_a_stuck_terminal_is_bounded_and_output_goes_on(rig: Rig) -> None:
    rig.say(type="attach", id="t1", cols=80, rows=24)
    rig.host.pipe.may_write.clear()
    for _ in range(INPUT_LIMIT // 65_536):
        rig.session.data(b"y" * 65_536)
    rig.host.pipe.output.put_nowait(b"still here")
    await settle()
    assert bytes(rig.page.received) == b"still here"
    assert rig.page.code is None

    rig.session.data(b"y")
    await rig.running
    assert rig.page.code == 1008
    assert rig.host.pipe.aborted


async def test_the_end_of_the_process_is_told_after_its_last_output(rig: Rig) -> None:
    rig.say(type="attach", id="t1", cols=80, rows=24)
    rig.host.pipe.output.put_nowait(b"bye")
    rig.host.pipe.output.put_nowait(b"")
    await rig.running
    assert bytes(rig.page.received) == b"bye"
    assert rig.page.texts[-1] == {"type": "exit", "status": 3}
    assert rig.page.code == 1000


async def test_a_broken_stream_asks_the_page_to_come_back(rig: Rig) -> None:
    rig.say(type="attach", id="t1", cols=80, rows=24)
    rig.host.pipe.output.put_nowait(b"break")
    await rig.running
    assert rig.page.last("error")["retry"] is True
    assert rig.page.code == 1013


async def test_an_unknown_terminal_is_not_worth_a_second_try(rig: Rig) -> None:
    rig.say(type="attach", id="gone", cols=80, rows=24)
    await rig.running
    assert rig.page.last("error") == {
        "type": "error",
        "code": "no_terminal",
        "message": "there is no such terminal",
        "retry": False,
    }
    assert rig.page.code == 4404


async def test_resizes_of_a_drag_collapse_and_wait_for_the_terminal(rig: Rig) -> None:
    rig.say(type="open", cols=80, rows=24)
    for cols in range(81, 200):
        rig.say(type="resize", cols=cols, rows=24)
    await settle()
    assert rig.host.calls[-1] == ("resize", "t1", 199, 24)
    assert len(rig.host.calls) == 3


async def test_listing_and_closing_need_no_attachment(rig: Rig) -> None:
    rig.say(type="list")
    rig.say(type="close", id="t9")
    rig.say(type="ping")
    await settle()
    assert rig.page.last("terminals")["terminals"] == [
        {"id": "t1", "title": "bash", "running": False, "started": 1.0, "exit": 3}
    ]
    assert rig.page.last("closed")["id"] == "t9"
    assert rig.page.last("pong")
    assert rig.host.calls == [("close", "t9")]


@pytest.mark.parametrize(
    "break_rules",
    [
        lambda session: session.text("no json"),
        lambda session: session.data(b"typed too early"),
        lambda session: session.text('{"type":"ack","offset":1}'),
        lambda session: [session.text('{"type":"list"}') for _ in range(1000)],
        lambda session: [session.text('{"type":"open","cols":1,"rows":1}') for _ in range(2)],
    ],
)
async def test_a_page_that_breaks_the_protocol_is_cut_off(rig: Rig, break_rules: Any) -> None:
    await settle()
    break_rules(rig.session)
    await rig.running
    assert rig.page.last("error")["code"] == "bad_message"
    assert rig.page.code == 1008


async def test_a_page_that_goes_away_leaves_the_terminal_alone(rig: Rig) -> None:
    rig.say(type="attach", id="t1", cols=80, rows=24)
    await settle()
    rig.running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await rig.running
    assert rig.host.pipe.aborted
    assert ("close", "t1") not in rig.host.calls
