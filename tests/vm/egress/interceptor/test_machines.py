"""Two machines at one interceptor: neither has anything of the other's."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.vm.egress.interceptor.scene import API, VALUE, Scene, answering, endless, request, secret
from vm.egress.journal import Kind

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def neighbour(scene: Scene, tmp_path: Path) -> AsyncIterator[Scene]:
    """Another machine's gate before the same interceptor; what that says is heard by `scene`."""
    with scene.beside(tmp_path) as made:
        yield made


async def test_another_machine_s_placeholder_means_nothing(scene: Scene, neighbour: Scene) -> None:
    """It travels as it is and is told of, while from its own machine the value arrives."""
    mine, theirs = secret(), secret(value="the-value-of-the-neighbour")
    await scene.tell(mine)
    await neighbour.tell(theirs)
    async with scene.serving() as server:
        await scene.ask(server.port, f"X-Key: {theirs.placeholder}", f"X-Mine: {mine.placeholder}")
        assert server.got[-1]["x-key"] == theirs.placeholder.encode()
        assert server.got[-1]["x-mine"] == VALUE.encode()
        assert "none of this sandbox's" in (await scene.note(Kind.ALERT)).detail
        await neighbour.ask(server.port, f"X-Key: {theirs.placeholder}")
        assert server.got[-1]["x-key"] == b"the-value-of-the-neighbour"
    assert not scene.noted(Kind.ALERT)


async def test_a_machine_s_answers_say_nothing_of_another_s_secrets(scene: Scene, neighbour: Scene) -> None:
    """A value is taken out for its own machine only: otherwise one could try whether another has it."""
    theirs = secret(value="the-value-of-the-neighbour")
    await scene.tell(secret())
    await neighbour.tell(theirs)
    body = theirs.value.encode()
    async with scene.serving(answering(f"200 OK\r\nContent-Length: {len(body)}", body)) as server:
        assert (await scene.ask(server.port, host=API)).body == body
        assert (await neighbour.ask(server.port, host=API)).body == theirs.placeholder.encode()


async def test_machines_take_turns_however_many_connections_one_has(scene: Scene, neighbour: Scene) -> None:
    """Sixteen downloads of one and a single one of the other: the single one has about half of what passes."""
    came: Counter[Scene] = Counter()

    async def download(whose: Scene, port: int) -> None:
        async with whose.talking(API, port) as (reader, writer):
            writer.write(request("GET /", f"Host: {API}"))
            while data := await reader.read(65536):
                came[whose] += len(data)

    for whose in (scene, neighbour):
        await whose.tell(*(secret(value=f"{number}{VALUE}", name=f"T{number}") for number in range(20)))
    async with scene.serving(endless) as server, asyncio.timeout(60):
        all_of_them = [scene] * 16 + [neighbour]
        downloads = [asyncio.ensure_future(download(one, server.port)) for one in all_of_them]
        try:
            while len(server.got) < len(downloads) or not came[neighbour]:
                await asyncio.sleep(0.05)
            came.clear()
            while came.total() < 12_000_000:
                await asyncio.sleep(0.05)
        finally:
            for one in downloads:
                one.cancel()
            await asyncio.wait(downloads)
    assert 0.3 < came[neighbour] / came.total() < 0.7, came


async def test_a_neighbour_is_served_while_an_answer_becomes_much(scene: Scene, neighbour: Scene) -> None:
    """A packed one, a hundred times as long as it is, that looks like a value everywhere; nobody ends for it."""
    packer = zlib.compressobj(wbits=31)
    parts = [packer.compress(random.randbytes(2000).hex().encode() + b"a" * 400_000) for _ in range(100)]
    packed = b"".join([*parts, packer.flush()])
    came, size = 0, 100 * 404_000

    async def download(port: int) -> None:
        nonlocal came
        async with scene.talking(API, port) as (reader, writer):
            writer.write(request("GET /", f"Host: {API}"))
            while came < size and (data := await reader.read(2**20)):
                came += len(data)

    await scene.tell(secret(value="aaaaaaaab"))
    await neighbour.tell(secret())
    pids = [one.process.pid for one in scene.interceptors._processes]
    head = f"200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}"
    async with scene.serving(answering(head, packed)) as much, neighbour.serving() as server, asyncio.timeout(60):
        downloading = asyncio.ensure_future(download(much.port))
        while not came:
            await asyncio.sleep(0)
        assert (await neighbour.ask(server.port)).status == 200
        assert came < size, "the answer was there as a whole before the neighbour's"
        await neighbour.tell(secret())
        await downloading
    assert came >= size
    assert [one.process.pid for one in scene.interceptors._processes] == pids


async def test_an_authority_of_a_company_is_trusted_where_the_administrator_says_so(
    scene: Scene, tmp_path: Path
) -> None:
    """An upstream of a private authority gets nothing, and the guest reads so; named in the settings, it gets all."""
    token = secret()
    await scene.tell(token)
    async with scene.serving() as server:
        assert (await scene.ask(server.port, f"X-Key: {token.placeholder}")).status == 200
        assert server.got[-1]["x-key"] == VALUE.encode()
    stranger = Scene(tmp_path, trusting=False)
    await stranger.start()
    try:
        await stranger.tell(token)
        async with stranger.serving() as server:
            answer = await stranger.ask(server.port, f"X-Key: {token.placeholder}")
            assert (answer.status, server.got) == (502, [])
            assert VALUE.encode() not in answer.raw
    finally:
        await stranger.close()
