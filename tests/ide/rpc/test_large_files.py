"""Large files pass through one process's memory: bounded in size, and nobody is held up for ever by somebody else."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from ide.budget import Budget
from ide.rpc.methods import files
from tests.factories import Team
from tests.ide.rpc.test_connection import Client, connected
from vm.fake import FakeNode

SIZE = 5 * 2**20


async def written(client: Client, size: int = SIZE) -> Client:
    """With a file too large to be read beside others without a bound."""
    await client.call("writeFile", path="large", content="")
    await client.call("truncate", name="large", length=size)
    return client


def stall(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on its guest says how large a file is, and sends nothing of it."""
    guest = client.connection.guest

    async def stalled(*args: Any, **named: Any) -> Any:
        call = await guest(*args, **named)
        monkeypatch.setattr(call, "read", asyncio.Event().wait)
        return call

    monkeypatch.setattr(client.connection, "guest", stalled)


def content(answer: dict[str, Any]) -> bytes:
    return base64.b64decode(answer["result"]["ok"])


async def test_a_guest_that_never_sends_holds_up_another_s_reading_for_a_time_only(
    home: Team, other: Team, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up in the time its size allows; the other sandbox's file comes then, and its own next one too."""
    monkeypatch.setattr(files, "_large", Budget(SIZE))
    monkeypatch.setattr(files, "PATIENCE", 1.0)
    monkeypatch.setattr(files, "PACE", 100 * 2**20)
    async with connected(home) as bad, connected(other) as good:
        await written(bad)
        await written(good)
        with monkeypatch.context() as stalling:
            stall(bad, stalling)
            never = await bad.begin("readFile", path="large")
            await asyncio.sleep(0.3)
        waiting = await good.begin("readFile", path="large")
        await asyncio.sleep(0.3)
        assert not any(message.get("id") == waiting for message in good.received)
        assert content(await good.answer(waiting)) == bytes(SIZE)
        assert (await bad.answer(never))["result"]["error"]["code"] == "ETIMEDOUT"
        assert content(await bad.answer(await bad.begin("readFile", path="large"))) == bytes(SIZE)


async def test_small_files_wait_for_nobody(
    home: Team, other: Team, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(home) as bad, connected(other) as good:
        monkeypatch.setattr(files, "_large", Budget(SIZE))
        await written(bad)
        await good.call("writeTextFile", path="small", content="x")
        stall(bad, monkeypatch)
        await bad.begin("readFile", path="large")
        await asyncio.sleep(0.3)
        assert (await good.call("readTextFile", path="small")) == {"ok": "x"}


async def test_one_sandbox_takes_one_place(
    home: Team, other: Team, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many large files one sandbox's client asks for, another's is read beside the first of them."""
    monkeypatch.setattr(files, "_large", Budget(3 * SIZE))
    async with connected(home) as greedy, connected(other) as modest:
        await written(greedy)
        await written(modest)
        stall(greedy, monkeypatch)
        for _ in range(4):
            await greedy.begin("readFile", path="large")
        await asyncio.sleep(0.3)
        assert content(await modest.answer(await modest.begin("readFile", path="large"))) == bytes(SIZE)


async def test_a_client_that_takes_nothing_has_one_large_file_in_memory(home: Team, node: FakeNode) -> None:
    """The next one is read when the one before is sent."""
    async with connected(home) as client:
        await written(client)
        client.paused = asyncio.Event()
        numbers = [await client.begin("readFile", path="large") for _ in range(3)]
        await asyncio.sleep(1)
        assert len(files._turns) == 1
        assert files._large._free >= files.LARGE_TOGETHER  # nothing more is being read
        client.paused.set()
        for number in numbers:
            assert content(await client.answer(number)) == bytes(SIZE)


async def test_a_file_that_gives_more_than_its_size_is_cut_off(
    home: Team, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files may grow while they are read, but what was granted for them bounds what is held."""
    async with connected(home) as client:
        await written(client)
        guest = client.connection.guest

        async def understated(*args: Any, **named: Any) -> Any:
            call = await guest(*args, **named)
            reply = call.reply

            async def small() -> Any:
                return {**await reply(), "size": 0}

            monkeypatch.setattr(call, "reply", small)
            return call

        monkeypatch.setattr(client.connection, "guest", understated)
        answer = await client.answer(await client.begin("readFile", path="large"))
        assert answer["result"]["error"]["code"] == "EFBIG"


async def test_text_and_bytes_come_whole(home: Team, node: FakeNode) -> None:
    """Whatever their length, and wherever a character is cut."""
    async with connected(home) as client:
        for text in ("", "ä", "漢字🌊\n\0\x7f" * 50_001, "x" * SIZE):
            await client.call("writeTextFile", path="f", content=text)
            assert await client.call("readTextFile", path="f") == {"ok": text}
            assert content(await client.answer(await client.begin("readFile", path="f"))) == text.encode()
