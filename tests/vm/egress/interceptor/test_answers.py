"""What comes back through a real interceptor: no spelling of a value, in whatever way it is framed."""

from __future__ import annotations

import asyncio
import base64
import gzip
import html
import json
import subprocess
import zlib
from urllib.parse import quote

import brotli
import pytest

from tests.vm.egress.interceptor.scene import (
    API,
    VALUE,
    Got,
    Scene,
    answering,
    hello,
    read_answer,
    request,
    secret,
)
from vm.node.interceptors import CHECKOUT

pytestmark = pytest.mark.asyncio(loop_scope="module")

RAW = VALUE.encode()
SPELLINGS = {
    "raw": RAW,
    "hex": RAW.hex().encode(),
    "HEX": RAW.hex().upper().encode(),
    "base64": base64.b64encode(RAW),
    "base64 behind one": base64.b64encode(b"u" + RAW),
    "base64 behind two": base64.b64encode(b"u:" + RAW),
    "base64url": base64.urlsafe_b64encode(RAW + b"\xff\xff"),
    "url": quote(VALUE, safe="").encode(),
    "json": json.dumps(VALUE).encode(),
    "json slashes": VALUE.replace("/", "\\/").encode(),
    "html": html.escape(VALUE).encode(),
}


def leaks(data: bytes) -> list[str]:
    """The spellings of which enough is in there to read the value."""
    # Of base64 the digits at both ends say less than a character each
    return [name for name, spelling in SPELLINGS.items() if spelling[3:-5] in data]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("piece", [1, 7, 10_000])
async def test_no_spelling_comes_back(scene: Scene, spelling: str, piece: int) -> None:
    """In a body of known and unknown length, cut anywhere; the placeholder stands in its place."""
    token = secret()
    await scene.tell(token)
    body = b"<<" + SPELLINGS[spelling] + b">>"
    pieces = [body[place : place + piece] for place in range(0, len(body), piece)]
    chunks = [b"%x\r\n%s\r\n" % (len(one), one) for one in pieces]
    plain = answering(f"200 OK\r\nContent-Length: {len(body)}\r\nX-Echo: {body.decode()}", body)
    chunked = answering(
        "200 OK\r\nTransfer-Encoding: chunked", b"".join(chunks[:3]), b"".join(chunks[3:]), b"0\r\n\r\n"
    )
    until_end = answering("200 OK\r\nConnection: close", body[: piece + 2], body[piece + 2 :], close=True)
    async with scene.serving(plain, chunked, until_end) as server:
        for _ in range(3):
            answer = await scene.ask(server.port)
            assert token.placeholder.encode() in answer.body
            assert (answer.body[:2], answer.body[-2:]) == (b"<<", b">>")
            assert not leaks(answer.raw)
    assert leaks(body)


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "deflate", "br", "gzip, br"])
async def test_no_coding_hides_a_value(scene: Scene, coding: str) -> None:
    """Answers that are compressed although nobody asked for it are unpacked, looked through and sent plain."""
    token = secret()
    await scene.tell(token)
    pack = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress}
    body = b"begin " + RAW + b" end" * 50_000
    packed = body
    for name in coding.split(", "):
        packed = pack[name](packed)
    head = f"200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {len(packed)}"
    async with scene.serving(answering(head, packed[:20], packed[20:])) as server:
        answer = await scene.ask(server.port, "Accept-Encoding: gzip, br")
        assert server.got[-1]["accept-encoding"] == b"identity"
    assert answer.body == body.replace(RAW, token.placeholder.encode())
    assert "content-encoding" not in answer.fields


def _zstd(data: bytes) -> bytes:
    """Packed where the library is: the main environment of Python before 3.14 has none."""
    program = "import sys; from backports import zstd; sys.stdout.buffer.write(zstd.compress(sys.stdin.buffer.read()))"
    python = str(CHECKOUT / ".venv-interceptor/bin/python")
    return subprocess.run([python, "-c", program], input=data, capture_output=True, check=True).stdout  # noqa: TID251


async def test_zstd_hides_nothing_either(scene: Scene) -> None:
    """In one frame and in several, in an answer and in a request."""
    token = secret(places=["body"])
    await scene.tell(token)
    body = RAW + b" end" * 50_000
    for packed in (_zstd(body), _zstd(body[:9]) + _zstd(body[9:])):
        head = f"200 OK\r\nContent-Encoding: zstd\r\nContent-Length: {len(packed)}"
        async with scene.serving(answering(head, packed[:20], packed[20:])) as server:
            asked = _zstd(token.placeholder.encode())
            answer = await scene.ask(server.port, "Content-Encoding: zstd", body=asked)
            assert server.got[-1].body == RAW
        assert answer.body == body.replace(RAW, token.placeholder.encode())
    bomb = _zstd(bytes(64 * 2**20))
    head = f"200 OK\r\nContent-Encoding: zstd\r\nContent-Length: {len(bomb)}"
    async with scene.serving(answering(head, bomb)) as server:
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError, ValueError)):
            await scene.ask(server.port)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", b"this is not gzip"),
        ("unheard-of", b"x"),
        ("gzip", gzip.compress(RAW * 100, mtime=0)[:60]),
        ("gzip", gzip.compress(bytes(64 * 2**20), mtime=0)),
        ("br", brotli.compress(bytes(64 * 2**20))),
    ],
)
async def test_what_cannot_be_looked_through_does_not_pass(scene: Scene, coding: str, body: bytes) -> None:
    """What is not what it says, is cut off, or is a bomb ends the connection; the next one works."""
    await scene.tell(secret())
    head = f"200 OK\r\nContent-Encoding: {coding}\r\nContent-Length: {len(body)}"
    async with scene.serving(answering(head, body), hello) as server:
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError, ValueError)):
            await scene.ask(server.port)
        assert (await scene.ask(server.port)).body == b"hello\n"


async def test_an_event_stream_is_passed_on_as_it_comes(scene: Scene) -> None:
    """Each event arrives before the next is sent, and a value split over two is not seen."""
    token = secret()
    await scene.tell(token)
    go_on = asyncio.Event()

    async def events(got: Got, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\ndata: one\n\n")
        await writer.drain()
        await go_on.wait()
        writer.write(b"data: " + RAW[:9])
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(RAW[9:] + b"\n\n")
        writer.close()

    async with scene.serving(events) as server, scene.talking(API, server.port) as (reader, writer):
        writer.write(request("GET /", f"Host: {API}"))
        await reader.readuntil(b"data: one\n\n")
        go_on.set()
        rest = await reader.read(-1)
    assert token.placeholder.encode() in rest
    assert not leaks(rest)


async def test_a_part_of_an_answer_cannot_be_asked_for(scene: Scene) -> None:
    """Half of a value in each of two parts would pass: Range is not sent on."""
    await scene.tell(secret())
    async with scene.serving() as server:
        await scene.ask(server.port, "Range: bytes=0-5", 'If-Range: "x"')
    assert (server.got[-1]["range"], server.got[-1]["if-range"]) == (b"", b"")


async def test_a_value_in_the_reason_or_a_header_of_any_answer(scene: Scene) -> None:
    """A redirect to a URL with the value in it, a cookie, a reason phrase, an answer without a body."""
    token = secret(value="plain-value-1")
    await scene.tell(token)
    head = "302 because plain-value-1\r\nLocation: https://evil.example/?k=plain-value-1\r\nSet-Cookie: k=plain-value-1"
    async with scene.serving(answering(f"{head}\r\nContent-Length: 0"), answering("304 plain-value-1")) as server:
        first = await scene.ask(server.port)
        async with scene.talking(API, server.port) as (reader, writer):
            writer.write(request("GET /", f"Host: {API}"))
            second = await reader.readuntil(b"\r\n\r\n")
    assert first.status == 302
    assert b"plain-value" not in first.raw + second
    assert first.fields["set-cookie"] == f"k={token.placeholder}"


async def test_a_head_request_and_a_large_body_keep_their_lengths(scene: Scene) -> None:
    """HEAD has its length and no body; 20 MB arrive whole."""
    await scene.tell(secret())
    big = b"0123456789" * 2_000_000
    async with (
        scene.serving(
            answering("200 OK\r\nContent-Length: 99"), answering(f"200 OK\r\nContent-Length: {len(big)}", big)
        ) as server,
        scene.talking(API, server.port) as (reader, writer),
    ):
        writer.write(request("HEAD /", f"Host: {API}"))
        assert b"99" in await reader.readuntil(b"\r\n\r\n")
        writer.write(request("GET /", f"Host: {API}"))
        assert (await read_answer(reader)).body == big
