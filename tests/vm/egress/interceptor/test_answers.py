"""What comes back through a real interceptor: no spelling of a value, in whatever way it is framed."""

from __future__ import annotations

import asyncio
import base64
import gzip
import html
import json
import secrets as randomness
import subprocess
import time
import zlib
from contextlib import suppress
from dataclasses import replace
from urllib.parse import quote, quote_plus

import brotli
import pytest

from tests.vm.egress.interceptor import http2
from tests.vm.egress.interceptor.scene import (
    API,
    OTHER,
    VALUE,
    Got,
    Scene,
    answering,
    hello,
    read_answer,
    request,
    secret,
)
from vm.egress.journal import Verdict
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
    "encodeURIComponent": quote(VALUE, safe="!'()*").encode(),
    "encodeURI": quote(VALUE, safe="!'()*;,/?:@&=+$#").encode(),
    "json of Go": VALUE.replace("&", "\\u0026").encode(),
    "json of .NET": VALUE.replace("&", "\\u0026").replace("+", "\\u002B").replace("'", "\\u0027").encode(),
    "json of Jinja": VALUE.replace("&", "\\u0026").replace("'", "\\u0027").encode(),
    "json of PHP": VALUE.replace("&", "\\u0026").replace("'", "\\u0027").replace("/", "\\/").encode(),
    "json of Gson": VALUE.replace("&", "\\u0026").replace("'", "\\u0027").replace("=", "\\u003d").encode(),
    "JSON of Gson": VALUE.replace("&", "\\u0026").replace("'", "\\u0027").replace("=", "\\u003D").encode(),
    "URLSearchParams, URLEncoder": quote_plus(VALUE, safe="*").replace("~", "%7E").encode(),
    "URLEncoder in lower case": quote_plus(VALUE, safe="*").replace("~", "%7e").lower().encode(),
    "urlencode of PHP": quote_plus(VALUE).replace("~", "%7E").encode(),
    "url of old": quote(VALUE, safe="").replace("~", "%7E").encode(),
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


@pytest.mark.parametrize("coding", ["gzip, chunked", "chunked, gzip", "gzip", "identity, chunked"])
async def test_a_transfer_coding_hides_nothing(scene: Scene, coding: str) -> None:
    """Chunks are chunks of what is meant; any other coding of the transfer ends the connection."""
    token = secret()
    await scene.tell(token)
    packed = gzip.compress(RAW)
    chunks = b"%x\r\n%s\r\n0\r\n\r\n"
    refused = answering(f"200 OK\r\nTransfer-Encoding: {coding}", chunks % (len(packed), packed), close=True)
    plain = answering("200 OK\r\nTransfer-Encoding: chunked", chunks % (len(RAW), RAW))
    async with scene.serving(refused, plain) as server:
        said = b" 502 "
        with suppress(ConnectionError, asyncio.IncompleteReadError, ValueError):
            said = (await scene.ask(server.port)).raw
        assert b" 502 " in said
        assert packed[10:20] not in said
        answer = await scene.ask(server.port)
    assert answer.body == token.placeholder.encode()


async def test_an_open_stream_is_looked_through_for_the_values_of_now(scene: Scene) -> None:
    """A secret that is rotated while an answer goes on: its new value is taken out of it, and its old one still."""
    token = secret()
    await scene.tell(token)
    go_on = asyncio.Event()

    async def events(got: Got, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ndata: " + RAW + b"\n\n")
        await writer.drain()
        await go_on.wait()
        writer.write(b"data: the-fresh-value " + RAW + b"\n\n")
        writer.close()

    async with scene.serving(events) as server, scene.talking(API, server.port) as (reader, writer):
        writer.write(request("GET /", f"Host: {API}"))
        mark = token.placeholder.encode()
        await reader.readuntil(b"data: " + mark + b"\n\n")
        await scene.tell(replace(token, value="the-fresh-value"))
        go_on.set()
        assert await reader.read(-1) == b"data: " + mark + b" " + mark + b"\n\n"


async def test_the_most_secrets_hold_up_nobody_else(scene: Scene) -> None:
    """As many values as a machine may have are known at once, found, and passed on as fast as they come."""
    many = [secret(value=f"{number:04}" + randomness.token_hex(500), name=f"T{number}") for number in range(256)]
    began = time.monotonic()
    await scene.tell(*many)
    assert time.monotonic() - began < 3
    assert scene.interceptors.alive == 1
    text = base64.b64encode(randomness.token_bytes(3 * 2**20))
    body = text + many[17].value.encode() + text
    chunked = answering(f"200 OK\r\nContent-Length: {len(body)}", body)
    async with scene.serving(chunked) as server:
        began = time.monotonic()
        answer = await scene.ask(server.port)
        assert time.monotonic() - began < 15
    assert answer.body == text + many[17].placeholder.encode() + text


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
    """Half of a value in each of two parts would pass: Range is not sent on, but to a host without a secret."""
    await scene.tell(secret())
    async with scene.serving(names=[API, OTHER]) as server:
        await scene.ask(server.port, "Range: bytes=0-5", 'If-Range: "x"')
        assert (server.got[-1]["range"], server.got[-1]["if-range"]) == (b"", b"")
        await scene.ask(server.port, "Range: bytes=0-5", 'If-Range: "x"', host=OTHER)
        assert (server.got[-1]["range"], server.got[-1]["if-range"]) == (b"bytes=0-5", b'"x"')


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


@pytest.mark.parametrize(
    ("head", "method"), [("204 No Content", "GET"), ("304 Not Modified", "GET"), ("200 OK", "HEAD")]
)
async def test_what_stands_behind_an_answer_without_a_body_is_dropped(scene: Scene, head: str, method: str) -> None:
    """Over HTTP/1.1 it would be the next answer: the guest has the head, and not a byte of it."""
    token = secret()
    await scene.tell(token)
    async with (
        scene.serving(answering(head, RAW, RAW), hello) as server,
        scene.talking(API, server.port) as (reader, writer),
    ):
        writer.write(request(f"{method} /", f"Host: {API}", f"X-Key: {token.placeholder}"))
        assert (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0] == f"HTTP/1.1 {head}".encode()
        assert server.got[0]["x-key"] == RAW
        await asyncio.sleep(0.1)
        writer.write(request("GET /", f"Host: {API}"))
        assert (await read_answer(reader)).body == b"hello\n"


@pytest.mark.parametrize("pause", [False, True])
async def test_what_a_server_says_before_its_answer_is_not_its_answer(scene: Scene, pause: bool) -> None:
    """A 103 and a stray 100 are dropped, with the value in them; the answer, and the next one, are read as ever."""
    token = secret()
    await scene.tell(token)
    said = [b"HTTP/1.1 103 Early Hints\r\nLink: " + RAW + b"\r\n\r\n", *[b"HTTP/1.1 100 Continue\r\n\r\n"] * 2000]
    said += [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", b"ok"]

    async def reply(got: Got, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in [said[0][:20], said[0][20:], *said[-3:]] if pause else [b"".join(said)]:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.03)

    async with scene.serving(reply) as server, scene.talking(API, server.port) as (reader, writer):
        for _ in range(2):
            writer.write(request("GET /", f"Host: {API}"))
            answer = await read_answer(reader)
            assert (answer.status, answer.body, leaks(answer.raw)) == (200, b"ok", [])
        assert server.dialled == 1


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


@pytest.mark.parametrize("proxy", ["http/1.1", "h2"])
@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("GET", f"200 OK\r\n{VALUE}: x\r\nContent-Length: 2"),
        ("GET", f"304 X\r\nContent-Length: {VALUE}"),
        ("GET", f"204 X\r\nContent-Length: {VALUE}"),
        ("HEAD", f"200 OK\r\nContent-Length: {VALUE}"),
        ("HEAD", f"200 OK\r\nContent-Length: 2\r\nContent-Length: {VALUE}"),
        ("HEAD", f"200 OK\r\nTransfer-Encoding: {VALUE}"),
        ("GET", f"200 OK\r\nContent-Length: {VALUE}"),
        ("GET", f"200 OK\r\nTransfer-Encoding: {VALUE}"),
        ("GET", f"200 OK\r\n{VALUE}"),
        ("GET", f"{VALUE} OK"),
    ],
)
async def test_nothing_is_quoted_of_an_answer_that_is_not_well_formed(
    scene: Scene, method: str, head: str, proxy: str
) -> None:
    """A value in the name of a header, or where a length should be: the guest reads that it broke off, and no more."""
    await scene.tell(secret())
    async with scene.serving(answering(head, b"ok")) as server:
        if proxy == "h2":
            async with http2.client(scene, server.port) as guest:
                answer = await guest.ask(method=method.lower())  # h2 lets no page follow HEAD
            status, raw = answer.fields[":status"], repr(answer.fields).encode() + answer.body
        else:
            async with scene.talking(API, server.port) as (reader, writer):
                writer.write(request(f"{method} /", f"Host: {API}"))
                raw = await reader.read()
            status = raw.split()[1].decode()
    assert (status, leaks(raw), b"the exchange broke off" in raw) == ("502", [], True)
    assert b"mitmproxy" not in raw
    assert b"option" not in raw
    noted = await scene.note()
    assert (noted.verdict, VALUE in repr(noted)) == (Verdict.FAILED, False)


@pytest.mark.parametrize("value", ["48151623", "4_8", "-48", "1000"])
async def test_a_value_that_is_a_number_does_not_come_back_as_a_status(scene: Scene, value: str) -> None:
    """Nor into the journal: what has not three digits is no status, and what has is one."""
    await scene.tell(secret(value=value))
    async with scene.serving(
        answering(f"{value} OK\r\nContent-Length: 0"), answering("999 No\r\nContent-Length: 0")
    ) as server:
        answer = await scene.ask(server.port)
        assert (answer.status, (await scene.note()).status) == (502, 0)
        assert (await scene.ask(server.port)).status == 999
