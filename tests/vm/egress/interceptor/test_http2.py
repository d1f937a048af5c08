"""HTTP/2, gRPC and WebSockets through a real interceptor; and how little it holds of each."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from pathlib import Path

import pytest

from tests.vm.egress.interceptor import http2
from tests.vm.egress.interceptor.http2 import Message
from tests.vm.egress.interceptor.scene import (
    API,
    OTHER,
    VALUE,
    Got,
    Scene,
    hello,
    placeholder,
    read_answer,
    request,
    secret,
)
from tests.vm.egress.interceptor.test_pieces import _frame, _read
from vm.egress.journal import Kind, Verdict

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


@pytest.mark.parametrize(("status", "method"), [("204", "GET"), ("304", "GET"), ("200", "head"), ("205", "GET")])
async def test_an_answer_that_has_no_body_brings_none(scene: Scene, status: str, method: str) -> None:
    """What comes behind its head all the same breaks it off, or is looked through; on the connection all goes on."""
    token = secret()
    await scene.tell(token)

    def answer(got: Message) -> tuple[http2.Fields, list[bytes], http2.Fields]:
        return [(":status", "200" if got.fields[":path"] == "/fine" else status)], [RAW], []

    async with http2.serving(scene, answer) as (port, got), http2.client(scene, port) as guest:
        said = await guest.ask(("x-key", token.placeholder), method=method)
        assert got[0].fields["x-key"] == VALUE
        assert (said.reset, RAW in said.body) == (False, False)
        assert said.fields[":status"] == ("205" if status == "205" else "502")
        assert (await guest.ask(path="/fine")).body == token.placeholder.encode()


class _Pouring(http2.End):
    """A server whose answers to GET are a 204 with a body that only a reset ends."""

    poured = 0
    stopped = False

    async def _reply(self, stream: int, *_answer: object) -> None:
        self.h2.send_headers(stream, [(":status", "204")])
        self.pouring = asyncio.ensure_future(self._pour(stream))

    async def _pour(self, stream: int) -> None:
        while self.poured < 40 * 2**20 and not self.messages[stream].reset:
            if self.h2.local_flow_control_window(stream) >= 2**14:
                self.h2.send_data(stream, bytes(2**14))
                self.poured += 2**14
                await self.flush()
            await asyncio.sleep(0)
        self.stopped = self.messages[stream].reset


async def test_an_endless_body_where_none_can_be_is_not_collected(scene: Scene) -> None:
    """The stream of a 204 that goes on for ever is reset, and its guest is told."""
    await scene.tell(secret())
    ends: list[_Pouring] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(_Pouring(reader, writer, lambda got: ([], [], [])))
        await ends[0].run()
        writer.close()

    context = scene.authority.context(API, alpn=("h2",))
    async with (
        await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server,
        http2.client(scene, server.sockets[0].getsockname()[1]) as guest,
    ):
        assert (await guest.ask()).fields[":status"] == "502"
        await asyncio.wait_for(ends[0].pouring, 15)
        ends[0]._writer.transport.abort()  # a close waits long for what was poured and not read
    assert ends[0].stopped


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "TRACK"])
async def test_a_method_for_proxies_goes_nowhere(scene: Scene, method: str) -> None:
    """Neither as a tunnel nor as an echo of what was put into the request; GET on the same connection passes."""
    token = secret()
    await scene.tell(token)
    async with http2.serving(scene, lambda got: ([(":status", "200")], [b"ok"], [])) as (port, got):
        async with http2.client(scene, port) as guest:
            said = await guest.ask(("x-key", token.placeholder), method=method)
            assert said.fields.get(":status") != "200"
            assert not got
        async with http2.client(scene, port) as guest:
            assert (await guest.ask(("x-key", token.placeholder))).fields[":status"] == "200"
        assert [one.fields["x-key"] for one in got] == [VALUE]


async def test_a_request_that_is_not_well_formed_is_not_quoted(scene: Scene) -> None:
    """It goes nowhere, and its guest reads that, rather than which option of mitmproxy's would let it pass."""
    await scene.tell(secret())
    async with (
        http2.serving(scene, lambda got: ([(":status", "200")], [b"ok"], [])) as (port, got),
        http2.client(scene, port) as guest,
    ):
        said = await guest.ask(("content-length", "2"), ("content-length", "2"), body=b"ab")
        assert (await guest.ask()).fields[":status"] == "200"
        assert len(got) == 1
    assert (said.fields[":status"], said.body) == ("400", b"Atoll: the request is not well formed.\n")


@pytest.mark.parametrize("proxy", ["h2", "http/1.1"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"http://{OTHER}/x"),
        ("GET", "x"),
        ("GET", "*"),
        ("GET", "/a b"),
        ("GET", "/a\tb"),
        ("GET", "/a\x0bb"),
        ("GET", "/a\x7fb"),
        ("GET", "/\u00e4"),
        ("GET / HTTP/1.1 X", "/"),
        ("GET(", "/"),
        ("G\u00c4T", "/"),
    ],
)
async def test_a_line_of_http1_cannot_be_made_of_http2(scene: Scene, method: str, path: str, proxy: str) -> None:
    """A target that is no path, or a method that is no word, goes to no server of either protocol; a good one does."""
    token = secret()
    await scene.tell(token)
    serving = (
        http2.serving(scene, lambda got: ([(":status", "200")], [b"ok"], [])) if proxy == "h2" else scene.serving()
    )
    async with serving as server:
        port, got = server if isinstance(server, tuple) else (server.port, server.got)
        async with http2.client(scene, port) as guest:
            said = await guest.ask(("x-key", token.placeholder), method=method, path=path)
            assert said.fields.get(":status") in (None, "403")
            assert not got
        async with http2.client(scene, port) as guest:
            for method, path in (("OPTIONS", "*"), ("M-SEARCH", "/a!~?b=%20")):
                assert (await guest.ask(("x-key", token.placeholder), method=method, path=path)).fields[
                    ":status"
                ] == "200"
        assert len(got) == 2


async def test_a_server_of_http1_answers_as_many_at_a_time_as_are_asked(scene: Scene) -> None:
    """Each has a connection of its own to it: six that take their time hold up no seventh, and are answered as well."""
    token = secret()
    await scene.tell(token)
    go_on = asyncio.Event()

    async def reply(got: Got, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if got.line.startswith(b"GET /held"):
            await go_on.wait()
        await hello(got, reader, writer)

    async with scene.serving(reply) as server, http2.client(scene, server.port) as guest:
        held = [asyncio.ensure_future(guest.ask(("x-key", token.placeholder), path="/held")) for _ in range(6)]
        async with asyncio.timeout(10):
            while len(server.got) < len(held):
                await asyncio.sleep(0.01)
        assert (await guest.ask(("x-key", token.placeholder))).body == b"hello\n"
        assert not any(one.done() for one in held)
        go_on.set()
        assert [one.body for one in await asyncio.gather(*held)] == [b"hello\n"] * 6
    assert [got["x-key"] for got in server.got] == [RAW] * 7


async def test_an_open_websocket_goes_by_the_value_of_now(scene: Scene) -> None:
    """After a rotation its messages get the new value, and what comes back is looked through for both."""
    token = secret(places=["body"], value="the-first-value")
    await scene.tell(token)
    heard: list[bytes] = []

    async def socket(got: Got, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        for _ in range(2):
            data = b""
            while not _read_all(data):
                data += await reader.read(65_536)
            heard.extend(payload for _, payload in _read(data, masked=True))
            writer.write(_frame(1, b"the-first-value|the-second-value" if len(heard) == 2 else heard[0]))
            await writer.drain()
        writer.close()

    fields = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA")
    said = token.placeholder.encode()
    async with scene.serving(socket) as server, scene.talking(API, server.port) as (reader, writer):
        writer.write(request("GET /chat", f"Host: {API}", *fields))
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_frame(1, said, key=b"abcd"))
        assert _read(await reader.readexactly(2 + len(said)), masked=False) == [(1, said)]
        await scene.tell(replace(token, value="the-second-value"))
        writer.write(_frame(1, said, key=b"abcd"))
        rest = b""
        while piece := await reader.read(65_536):
            rest += piece
    assert heard == [b"the-first-value", b"the-second-value"]
    # It may come in several frames, since what might be the beginning of a value is held back
    assert b"".join(payload for _, payload in _read(rest, masked=False)) == said + b"|" + said


@pytest.mark.parametrize("kind", ["application/grpc", "Application/gRPC-Web+proto"])
async def test_grpc_messages_keep_their_lengths_and_are_not_compressed(scene: Scene, kind: str) -> None:
    """A value in a message is replaced by as many bytes; a compressed one ends the call."""
    token = secret()
    await scene.tell(token)
    message = b"\x0a" + bytes([len(RAW)]) + RAW
    grpc = [(":status", "200"), ("content-type", kind)]

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


@pytest.mark.parametrize("kind", ["application/grpc-web-text", "Application/gRPC-Web-Text+proto"])
async def test_grpc_in_base64_is_looked_through_as_text(scene: Scene, kind: str) -> None:
    """It begins with an A, which is not taken for the flag of a compressed message; no value is in it."""
    token = secret()
    await scene.tell(token)
    body = base64.b64encode(b"\0" + (2 + len(RAW)).to_bytes(4) + b"\x0a" + bytes([len(RAW)]) + RAW)

    def answer(got: Message) -> tuple[http2.Fields, list[bytes], http2.Fields]:
        return [(":status", "200"), ("content-type", kind)], [body[:20], body[20:]], []

    async with http2.serving(scene, answer) as (port, _got), http2.client(scene, port) as guest:
        said = await guest.ask(("content-type", kind), ("te", "trailers"), body=b"AAAAAAA=")
    assert (said.reset, said.body[:8]) == (False, body[:8])
    assert token.placeholder.encode() in said.body
    assert body[20:-5] not in said.body


async def test_a_value_is_not_put_into_a_grpc_message(scene: Scene) -> None:
    """It would be longer than it says of itself: the call is denied and says so, one without a placeholder passes."""
    token = secret(places=["body"])
    await scene.tell(token)
    grpc = ("content-type", "application/grpc+proto")

    def answer(got: Message) -> tuple[http2.Fields, list[bytes], http2.Fields]:
        return [(":status", "200")], [b"ok"], []

    def message(text: str) -> bytes:
        return b"\0" + len(text).to_bytes(4) + text.encode()

    async with http2.serving(scene, answer) as (port, got), http2.client(scene, port) as guest:
        denied = await guest.ask(grpc, ("te", "trailers"), body=message("x" * 40_000 + token.placeholder))
        assert (denied.fields[":status"], b"T cannot be put into a gRPC" in denied.body) == ("403", True)
        assert "gRPC" in (await scene.note()).detail
        plain = message(f"no {token.placeholder[:-1]}")
        assert (await guest.ask(grpc, ("x-key", token.placeholder), body=plain)).fields[":status"] == "200"
    whole = [one for one in got if not one.reset]
    assert [(one.fields["x-key"], one.body) for one in whole] == [(VALUE, plain)]
    async with scene.serving() as server:
        said = await scene.ask(server.port, ": ".join(grpc), body=message(token.placeholder))
        assert (said.status, b"gRPC" in said.body) == (403, True)


async def test_a_foreign_placeholder_is_told_of_in_websockets_and_trailers(scene: Scene) -> None:
    """In messages that are cut anywhere, in control frames, and behind a body."""
    strangers = [placeholder() for _ in range(3)]
    await scene.tell(secret(places=["body"]))
    cut = [
        _frame(1, strangers[0][:20].encode(), final=False, key=b"abcd"),
        _frame(0, strangers[0][20:].encode(), key=b"efgh"),
    ]

    async def socket(got: Got, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        await reader.read(1)

    fields = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA")
    async with scene.serving(socket) as server, scene.talking(API, server.port) as (reader, writer):
        writer.write(request("GET /chat", f"Host: {API}", *fields))
        await reader.readuntil(b"\r\n\r\n")
        for frames in (b"".join(cut), _frame(9, strangers[1].encode(), key=b"abcd")):
            assert not scene.noted(Kind.ALERT)
            writer.write(frames)
            assert "none of this sandbox's" in (await scene.note(Kind.ALERT)).detail
    async with http2.serving(scene, lambda got: ([(":status", "200")], [b"ok"], [])) as (port, got):
        async with http2.client(scene, port) as guest:
            await guest.ask(body=b"x", trailers=[("x-last", strangers[2])])
        assert got[0].trailers == {"x-last": strangers[2]}
    assert "none of this sandbox's" in (await scene.note(Kind.ALERT)).detail


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
