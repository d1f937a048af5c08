"""Connections between requests: the upstream is let go of, and dialled again before anything is sent to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.vm.egress.interceptor import http2
from tests.vm.egress.interceptor.http2 import Message
from tests.vm.egress.interceptor.scene import API, VALUE, Got, Scene, answering, hello, read_answer, request, secret

pytestmark = pytest.mark.asyncio(loop_scope="module")

RESTING = 0.4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """Interceptors that wait for a moment only."""
    scene = Scene(tmp_path_factory.mktemp("scene"), resting=RESTING)
    await scene.start()
    yield scene
    await scene.close()


async def test_an_idle_upstream_is_let_go_and_every_request_arrives_once(scene: Scene) -> None:
    """The guest's connection stays; the next request, with a body and a value in it, goes to a new one."""
    token = secret(places=["body"])
    await scene.tell(token)
    body = f"<{token.placeholder}>"
    asked = request("POST /", f"Host: {API}", f"Content-Length: {len(body)}", "X-Key: " + token.placeholder)
    async with scene.serving() as server, scene.talking(API, server.port) as (reader, writer):
        for round_ in range(1, 4):
            writer.write(asked + body.encode())
            assert (await read_answer(reader)).body == b"hello\n"
            assert (server.dialled, len(server.got)) == (round_, round_)
            await server.left()
        assert {got.body for got in server.got} == {f"<{VALUE}>".encode()}
        assert {got["x-key"] for got in server.got} == {VALUE.encode()}
        assert scene.gate.connections == 1


async def test_an_answer_that_takes_its_time_is_waited_for(scene: Scene) -> None:
    """A server that says nothing for longer than a connection rests, and then sends slowly, is heard to the end."""

    async def slow(got: Got, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(3 * RESTING)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na")
        await writer.drain()
        await asyncio.sleep(3 * RESTING)
        writer.write(b"b")

    await scene.tell(secret())
    async with scene.serving(slow) as server, scene.talking(API, server.port) as (reader, writer):
        writer.write(request("GET /", f"Host: {API}"))
        assert (await read_answer(reader)).body == b"ab"
        assert server.dialled == 1


async def test_who_is_dialled_again_must_prove_who_he_is_again(scene: Scene) -> None:
    """A server that has another's certificate by then gets nothing; and where it has its own again, all goes on."""
    token = secret()
    await scene.tell(token)
    asked = request("GET /", f"Host: {API}", f"X-Key: {token.placeholder}")
    names = [API]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.readuntil(b"\r\n\r\n"))
        await hello(Got(b"", [], b""), reader, writer)
        await reader.read()
        gone.set()
        writer.close()

    got: list[bytes] = []
    gone = asyncio.Event()
    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=scene.authority.context(*names)) as first:
        port = first.sockets[0].getsockname()[1]
        async with scene.talking(API, port) as (reader, writer):
            writer.write(asked)
            assert (await read_answer(reader)).status == 200
            await asyncio.wait_for(gone.wait(), 10)
            first.close()
            stranger = await asyncio.start_server(
                serve, "127.0.0.1", port, ssl=scene.authority.context("stranger.example")
            )
            async with stranger:
                writer.write(asked)
                answer = await read_answer(reader)
    assert answer.status == 502
    assert len(got) == 1


async def test_idle_streams_of_http2_are_let_go_too(scene: Scene) -> None:
    """A client's one connection goes on, over another connection to the server."""
    token = secret()
    await scene.tell(token)

    def answer(got: Message) -> tuple[http2.Fields, list[bytes], http2.Fields]:
        return [(":status", "200")], [b"ok"], []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(http2.End(reader, writer, answer))
        await ends[-1].run()
        gone.set()
        writer.close()

    ends: list[http2.End] = []
    gone = asyncio.Event()
    context = scene.authority.context(API, alpn=("h2",))
    async with (
        await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server,
        http2.client(scene, server.sockets[0].getsockname()[1]) as guest,
    ):
        for _ in range(3):
            gone.clear()
            message = await guest.ask(("x-key", token.placeholder))
            assert (message.fields[":status"], message.body) == ("200", b"ok")
            await asyncio.wait_for(gone.wait(), 10)
    assert [[one.fields["x-key"] for one in end.messages.values()] for end in ends] == [[VALUE]] * 3


async def test_a_login_that_holds_for_a_connection_keeps_it(scene: Scene) -> None:
    """What is asked for by NTLM or Negotiate stays on one connection to the server."""
    await scene.tell(secret())
    asked = answering("401 Unauthorized\r\nWWW-Authenticate: NTLM\r\nContent-Length: 0")
    async with scene.serving(asked, hello) as server, scene.talking(API, server.port) as (reader, writer):
        writer.write(request("GET /", f"Host: {API}"))
        assert (await read_answer(reader)).status == 401
        await asyncio.sleep(3 * RESTING)
        writer.write(request("GET /", f"Host: {API}"))
        assert (await read_answer(reader)).status == 200
        assert server.dialled == 1
