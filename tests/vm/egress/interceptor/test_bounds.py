"""What an interceptor holds of what passes it, however much that is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.vm.egress.interceptor import http2
from tests.vm.egress.interceptor.scene import API, VALUE, Got, Scene, request, secret
from vm.egress.interceptor.budget import OF_MACHINE

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_head_that_becomes_too_long_is_denied(scene: Scene) -> None:
    """A long value in it once arrives; several times it is a 403 that says why, and the next request passes."""
    token = secret(value="v" * 60_000)
    await scene.tell(token)
    mark = token.placeholder
    async with scene.serving() as server:
        denied = await scene.ask(server.port, *[f"X-{number}: {mark}" for number in range(5)])
        assert (denied.status, b"more than 256 KiB" in denied.body, server.got) == (403, True, [])
        assert (await scene.ask(server.port)).status == 200


async def test_what_is_collected_of_a_machine_s_requests_has_a_bound(scene: Scene) -> None:
    """Beyond it bodies are filled as they pass, in chunks; once the others are over there is room again."""
    token = secret(places=["body"])
    await scene.tell(token)
    size = 2**20 - 100
    head = request("POST /", f"Host: {API}", f"Content-Length: {size}")
    async with scene.serving() as server, AsyncExitStack() as stack:
        for _ in range(32):
            _reader, writer = await stack.enter_async_context(scene.talking(API, server.port))
            writer.write(head + b"x")  # and never the rest of it
            await writer.drain()
        await scene.ask(server.port)  # by its answer those have been counted
        body = token.placeholder.encode() + bytes(size - len(token.placeholder))
        assert (await scene.ask(server.port, body=body)).status == 200
        chunked = server.got[-1]
        await stack.aclose()
        await asyncio.sleep(0.5)
        assert (await scene.ask(server.port, body=body)).status == 200
        whole = server.got[-1]
    assert chunked.body == whole.body == VALUE.encode() + body[len(token.placeholder) :]
    assert (chunked["transfer-encoding"], whole["content-length"]) == (b"chunked", str(len(whole.body)).encode())


def _status(scene: Scene, name: str) -> int:
    """A number of the interceptor's, as the kernel counts it."""
    (one,) = scene.interceptors._processes
    lines = Path(f"/proc/{one.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


async def _flood(got: Got, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while not writer.is_closing():
        writer.write(bytes(65_536))
        await writer.drain()
        await asyncio.sleep(0)  # to hear that the other end is gone


@asynccontextmanager
async def _reading_nothing(scene: Scene, port: int, count: int) -> AsyncIterator[None]:
    """So many guests that asked over HTTP/2 and open no window; what they could have got waits in the interceptor."""
    async with AsyncExitStack() as stack:
        for _ in range(count):
            guest = await stack.enter_async_context(http2.client(scene, port, acknowledge=False))
            head = {":method": "GET", ":scheme": "https", ":authority": API, ":path": "/"}
            guest.h2.send_headers(1, list(head.items()), end_stream=True)
            await guest.flush()
        last = -1
        while last != (last := _status(scene, "VmRSS")):
            await asyncio.sleep(1)
        yield


async def test_an_interceptor_sleeps_while_guests_read_nothing(scene: Scene) -> None:
    """It is not woken for them: a connection that looked by itself whether it may go on would do so for ever."""
    await scene.tell(secret())
    async with scene.serving(_flood) as server, _reading_nothing(scene, server.port, 20):
        before = _status(scene, "voluntary_ctxt_switches")
        await asyncio.sleep(2)
        assert (
            _status(scene, "voluntary_ctxt_switches") - before < 100
        )  # timers of connections that are over among them


async def test_what_waits_for_guests_that_read_nothing_has_a_bound(scene: Scene) -> None:
    """A hundred connections hold no more than their machine may; what is beyond it is not read, and others work."""
    await scene.tell(secret())
    async with scene.serving(_flood) as server, scene.serving() as other:
        before = _status(scene, "VmRSS")
        async with _reading_nothing(scene, server.port, 100):
            grown = (_status(scene, "VmRSS") - before) * 1024
            body = (await scene.ask(other.port, body=bytes(2**20))).body
        assert body == b"hello\n"
        assert grown < OF_MACHINE + 5 * 2**24


async def test_an_interceptor_has_a_limit_of_memory(scene: Scene) -> None:
    """Some gigabytes, whatever passes it: the host has the rest."""
    (one,) = scene.interceptors._processes
    lines = Path(f"/proc/{one.process.pid}/limits").read_text().splitlines()
    soft, hard = next(line for line in lines if line.startswith("Max data size")).split()[3:5]
    assert 2**30 <= int(soft) == int(hard) <= 2**32
