"""HTTP/2, gRPC and WebSockets through a real interceptor; and how little it holds of each."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest

from tests.vm.egress.interceptor import http2
from tests.vm.egress.interceptor.http2 import Message
from tests.vm.egress.interceptor.scene import API, OTHER, VALUE, Got, Scene, read_answer, request, secret
from tests.vm.egress.interceptor.test_pieces import _frame, _read
from vm.egress.journal import Verdict

pytestmark = pytest.mark.asyncio(loop_scope="module")

RAW = VALUE.encode()


async def test_a_value_arrives_over_http2_and_does_not_come_back(scene: Scene) -> None:
    """In headers and a body, in fields, split data and trailers."""
    token = secret(places=["body"])
    await scene.tell(token)

    def echo(got: Message) -> tuple[http2.Fields, list[bytes], http2.Fields]:
        return (
            [(":status", "200"), ("x-echo", VALUE)],
            [got.body[:7], got.body[7:]] if got.body else [RAW[:5], RAW[5:]],
            [("x-trailer", VALUE)],
        )

    async with http2.serving(scene, echo) as (port, got), http2.client(scene, port) as guest:
        first = await guest.ask(("authorization", f"Bearer {token.placeholder}"), authority=f"{API}:{port}")
        second = await guest.ask(("content-type", "text/plain"), body=b"<" + token.placeholder.encode() + b">")
        assert got[0].fields["authorization"] == f"Bearer {VALUE}"
        assert got[1].body == b"<" + RAW + b">"
    assert first.fields["x-echo"] == first.trailers["x-trailer"] == token.placeholder
    assert (first.body, second.body) == (token.placeholder.encode(), f"<{token.placeholder}>".encode())
    assert [passage.method for passage in scene.noted()] == ["GET", "POST"]


async def test_a_connection_is_for_one_host_only(scene: Scene) -> None:
    """Coalescing is answered with 421, CONNECT and TRACE are denied, the right authority passes on the same one."""
    token = secret([API, OTHER])
    await scene.tell(token)

    def answer(got: Message) -> tuple[http2.Fields, list[bytes], http2.Fields]:
        return [(":status", "200")], [b"ok"], []

    async with http2.serving(scene, answer, API, OTHER) as (port, got), http2.client(scene, port) as guest:
        foreign = await guest.ask(("x-key", token.placeholder), authority=OTHER)
        assert foreign.fields[":status"] == "421"
        assert OTHER in foreign.body.decode()
        right = await guest.ask(("x-key", token.placeholder))
        assert (right.fields[":status"], [one.fields["x-key"] for one in got]) == ("200", [VALUE])
        both = await guest.ask(("host", OTHER), ("x-key", token.placeholder))
        assert both.fields.get(":status") != "200"
        assert len(got) == 1
    denied = [passage for passage in scene.noted() if passage.verdict is Verdict.DENIED]
    assert denied[0].rule == "host mismatch"


async def test_grpc_messages_keep_their_lengths_and_are_not_compressed(scene: Scene) -> None:
    """A value in a message is replaced by as many bytes; a compressed one ends the call."""
    token = secret()
    await scene.tell(token)
    message = b"\x0a" + bytes([len(RAW)]) + RAW
    grpc = [(":status", "200"), ("content-type", "application/grpc")]

    def answer(got: Message) -> tuple[http2.Fields, list[bytes], http2.Fields]:
        flag = b"\1" if got.fields[":path"] == "/compressed" else b"\0"
        return grpc, [flag + len(message).to_bytes(4) + message], [("grpc-status", "0"), ("grpc-message", VALUE)]

    async with http2.serving(scene, answer) as (port, got):
        async with http2.client(scene, port) as guest:
            plain = await guest.ask(
                ("content-type", "application/grpc"),
                ("te", "trailers"),
                ("grpc-accept-encoding", "gzip"),
                body=b"\0" * 5,
            )
            assert (got[0].fields["grpc-accept-encoding"], got[0].fields["te"]) == ("identity", "trailers")
            assert len(plain.body) == 5 + len(message)
            assert plain.body[7:] == token.placeholder.encode()[: len(RAW)]
            assert plain.trailers == {"grpc-status": "0", "grpc-message": token.placeholder}
        async with http2.client(scene, port) as guest:
            packed = await guest.ask(("content-type", "application/grpc"), path="/compressed", body=b"\0" * 5)
            assert RAW not in packed.body
            assert not packed.trailers


def _memory(scene: Scene) -> int:
    """Bytes that the interceptor has in memory."""
    (one,) = scene.interceptors._processes
    lines = Path(f"/proc/{one.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


async def test_a_guest_that_reads_nothing_stops_its_upstream(scene: Scene) -> None:
    """Over HTTP/2 the window stays shut, and of an endless answer the interceptor holds a bounded part."""
    await scene.tell(secret())
    sent = 0

    async def endless(got: Got, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while sent < 300 * 2**20:
            writer.write(bytes(65_536))
            await writer.drain()
            sent += 65_536

    async with scene.serving(endless) as server:
        before = _memory(scene)
        async with http2.client(scene, server.port, acknowledge=False) as guest:
            asking = asyncio.ensure_future(guest.ask())
            last = -1
            while sent != last:
                last = sent
                await asyncio.sleep(0.5)
            grown = _memory(scene) - before
            asking.cancel()
        assert guest.received > 60_000
        assert sent < 40 * 2**20
        assert grown < 40 * 2**20


async def test_a_head_that_never_ends_is_not_collected(scene: Scene) -> None:
    """From a guest, and from an upstream: the connection ends, and the next one works."""
    await scene.tell(secret())

    async def flood(got: Got, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(100):
            writer.write(b"x" * 65_536)
            await writer.drain()

    async def fine(got: Got, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with scene.serving(flood, fine) as server:
        async with scene.talking(API, server.port) as (_reader, writer):
            with pytest.raises(OSError, match=r".*"):  # noqa: PT012
                writer.write(b"GET / HTTP/1.1\r\nX: ")
                for _ in range(200):
                    writer.write(b"x" * 65_536)
                    await writer.drain()
                raise OSError("it was read to the end")
        assert not server.got
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await scene.ask(server.port)
        assert (await scene.ask(server.port)).body == b"ok"


async def test_a_websocket_is_looked_through_in_both_directions(scene: Scene) -> None:
    """The handshake and, if asked to, messages get the value; what comes back has the placeholder, however framed."""
    token = secret(places=["body"])
    await scene.tell(token)
    heard: list[bytes] = []

    async def socket(got: Got, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert got["authorization"] == f"Bearer {VALUE}".encode()
        assert got["sec-websocket-extensions"] == b""
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: x\r\nX-Echo: " + RAW + b"\r\n\r\n"
        )
        data = b""
        while not _read_all(data):
            data += await reader.read(65_536)
        heard.extend(payload for _, payload in _read(data, masked=True))
        writer.write(_frame(1, b"<" + RAW[:4], final=False) + _frame(9, RAW[:60]))
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(_frame(0, RAW[4:] + b">") + _frame(2, base64.b64encode(RAW)) + _frame(8, b"\x03\xe8" + RAW))
        writer.close()

    fields = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA")
    async with scene.serving(socket) as server, scene.talking(API, server.port) as (reader, writer):
        writer.write(
            request(
                "GET /chat",
                f"Host: {API}",
                *fields,
                "Sec-WebSocket-Extensions: permessage-deflate",
                f"Authorization: Bearer {token.placeholder}",
            )
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101")
        said = token.placeholder.encode()
        writer.write(_frame(1, b"key " + said[:20], final=False, key=b"abcd") + _frame(0, said[20:], key=b"efgh"))
        rest = b""
        while piece := await reader.read(65_536):
            rest += piece
    assert heard == [b"key " + RAW]
    messages = _read(rest, masked=False)
    assert messages[1] == (1, b"<" + said + b">")
    assert RAW not in head + rest
    assert RAW[:60] not in rest
    assert (await scene.note()).status == 101


def _read_all(data: bytes) -> bool:
    try:
        return bool(_read(data, masked=True))
    except IndexError:
        return False


async def test_trailers_behind_chunks_end_the_connection_rather_than_hang_it(scene: Scene) -> None:
    """They cannot be looked through there; a client that sends none is served."""
    await scene.tell(secret())
    async with scene.serving() as server:
        async with scene.talking(API, server.port) as (reader, writer):
            writer.write(
                request("POST /", f"Host: {API}", "Transfer-Encoding: chunked") + b"1\r\na\r\n0\r\nX: y\r\n\r\n"
            )
            async with asyncio.timeout(5):
                with pytest.raises((OSError, asyncio.IncompleteReadError)):
                    await read_answer(reader)
        assert (await scene.ask(server.port)).status == 200
