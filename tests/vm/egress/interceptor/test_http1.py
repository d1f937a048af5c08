"""HTTP/1.1 through a real interceptor: values arrive at their hosts and nowhere else, and never come back."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import ssl
import zlib
from contextlib import nullcontext, suppress
from pathlib import Path
from urllib.parse import quote, quote_plus

import brotli
import pytest

from tests.vm.egress.interceptor.scene import (
    API,
    OTHER,
    VALUE,
    Authority,
    Got,
    Scene,
    hello,
    placeholder,
    read_answer,
    request,
    secret,
)
from vm.egress.journal import Kind, Verdict

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_value_arrives_in_headers(scene: Scene) -> None:
    """Bearer, Basic and any other header get the value; the request is a record without it."""
    token = secret()
    await scene.tell(token)
    basic = base64.b64encode(f"user:{token.placeholder}".encode()).decode()
    async with scene.serving() as server:
        answer = await scene.ask(server.port, f"Authorization: Bearer {token.placeholder}", path="/a?b=c")
        assert (answer.status, answer.body) == (200, b"hello\n")
        assert server.got[-1]["authorization"] == f"Bearer {VALUE}".encode()
        await scene.ask(server.port, f"Authorization: Basic {basic}", f"X-Key: {token.placeholder}")
    assert base64.b64decode(server.got[-1]["authorization"][6:]) == f"user:{VALUE}".encode()
    assert server.got[-1]["x-key"] == VALUE.encode()
    noted = await scene.note()
    assert (noted.host, noted.method, noted.path, noted.status) == (API, "GET", "/a?b", 200)
    assert (noted.verdict, noted.received) == (Verdict.ALLOWED, 6)
    assert not scene.noted(Kind.ALERT)
    assert VALUE not in repr(scene.passages)


async def test_a_value_never_stands_where_servers_tend_to_reflect_it(scene: Scene) -> None:
    """Referer, Origin, User-Agent and their like keep the placeholder, while another header gets the value."""
    token = secret()
    await scene.tell(token)
    names = ["Referer", "Origin", "User-Agent", "X-Forwarded-For", "Via", "X-Request-Id", "Accept-Language"]
    names += ["Content-Language", "Content-Security-Policy", "Accept-Anything"]
    async with scene.serving() as server:
        await scene.ask(server.port, f"X-Key: {token.placeholder}", *(f"{one}: {token.placeholder}" for one in names))
    assert server.got[-1]["x-key"] == VALUE.encode()
    for name in names:
        assert server.got[-1][name.lower()] == token.placeholder.encode()


async def test_path_and_query_take_a_value_only_if_asked_to(scene: Scene) -> None:
    """Without the opt-in the placeholder travels; with it the value stands there, escaped."""
    shy, open_ = secret(), secret(places=["path", "query"], value="other/value")
    await scene.tell(shy, open_)
    async with scene.serving() as server:
        await scene.ask(server.port, path=f"/{shy.placeholder}/{open_.placeholder}?k={open_.placeholder}")
    value = quote("other/value", safe="")
    assert server.got[-1].line == f"GET /{shy.placeholder}/{value}?k={value} HTTP/1.1".encode()
    assert "other" not in (await scene.note()).path


@pytest.mark.parametrize(
    ("kind", "body", "wanted"),
    [
        ("application/json", '{"key": "%s"}', json.dumps({"key": VALUE})),
        ("application/x-www-form-urlencoded", "key=%s", f"key={quote_plus(VALUE)}"),
        ("multipart/form-data; boundary=x", "--x\r\n\r\n%s\r\n--x--", f"--x\r\n\r\n{VALUE}\r\n--x--"),
        ("text/plain", "%s", VALUE),
    ],
)
@pytest.mark.parametrize("coding", ["", "gzip", "deflate", "br"])
async def test_a_body_takes_a_value_if_asked_to(scene: Scene, kind: str, body: str, wanted: str, coding: str) -> None:
    """Escaped as its type asks for, whatever its coding; its length is right."""
    token = secret(places=["body"])
    await scene.tell(token)
    plain = (body % token.placeholder).encode()
    packed = {"": bytes, "gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress}[coding](plain)
    coded = [f"Content-Encoding: {coding}"] if coding else []
    async with scene.serving() as server:
        answer = await scene.ask(server.port, f"Content-Type: {kind}", *coded, body=packed)
        assert answer.status == 200
        got = server.got[-1]
        assert (got.body, got["content-length"], got["content-encoding"]) == (
            wanted.encode(),
            str(len(wanted)).encode(),
            b"",
        )


async def test_a_placeholder_split_over_chunks_is_found(scene: Scene) -> None:
    """A body of unknown length is replaced in as it passes; without the opt-in it passes untouched."""
    token, shy = secret(places=["body"]), secret()
    await scene.tell(token, shy)
    async with scene.serving() as server:
        async with scene.talking(API, server.port) as (reader, writer):
            writer.write(request("POST /", f"Host: {API}", "Transfer-Encoding: chunked"))
            for piece in (b"a", *(bytes([one]) for one in token.placeholder.encode()), shy.placeholder.encode()):
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                await writer.drain()
            writer.write(b"0\r\n\r\n")
            assert (await read_answer(reader)).status == 200
        assert server.got[-1].body == b"a" + VALUE.encode() + shy.placeholder.encode()
        big = b"x" * 3_000_000
        answer = await scene.ask(server.port, body=big + token.placeholder.encode())
        assert answer.status == 200
        assert server.got[-1].body == big + VALUE.encode()


async def test_a_value_with_line_ends_is_refused_in_headers(scene: Scene) -> None:
    """The request goes nowhere, and says why; in a body such a value is as good as any."""
    token = secret(value="first\r\nX-Evil: 1", places=["body"])
    await scene.tell(token)
    async with scene.serving() as server:
        answer = await scene.ask(server.port, f"X-Key: {token.placeholder}")
        assert (answer.status, b"line ends" in answer.body) == (403, True)
        assert not server.got
        await scene.ask(server.port, body=token.placeholder.encode())
        assert server.got[-1].body == token.value.encode()


async def test_a_foreign_placeholder_is_told_of_and_travels_as_it_is(scene: Scene) -> None:
    """One bound elsewhere, and one of nobody known, in headers, path or body: an alert names the host."""
    here, elsewhere, unknown = secret(), secret([OTHER], name="ELSEWHERE", value="another value"), placeholder()
    await scene.tell(here, elsewhere)
    async with scene.serving() as server:
        await scene.ask(server.port, f"X-Key: {elsewhere.placeholder}", f"X-Mine: {here.placeholder}")
        assert server.got[-1]["x-key"] == elsewhere.placeholder.encode()
        assert server.got[-1]["x-mine"] == VALUE.encode()
        alert = await scene.note(Kind.ALERT)
        assert (alert.host, alert.port) == (API, server.port)
        assert "ELSEWHERE" in alert.detail
        await scene.ask(server.port, body=b"x" * 70_000 + unknown.encode())
        assert unknown.encode() in server.got[-1].body
    assert "none of this sandbox's" in (await scene.note(Kind.ALERT)).detail


@pytest.mark.parametrize("coding", ["gzip", "br", "unheard-of"])
async def test_a_foreign_placeholder_is_seen_in_a_body_that_is_not_filled(scene: Scene, coding: str) -> None:
    """It is unpacked to be looked at, and travels packed as it was; what is not what it says travels as well."""
    await scene.tell(secret())
    plain = b"x" * 70_000 + placeholder().encode()
    packed = gzip.compress(plain) if coding == "gzip" else brotli.compress(plain)
    async with scene.serving() as server:
        for body in (packed, b"neither"):
            assert (await scene.ask(server.port, f"Content-Encoding: {coding}", body=body)).status == 200
            assert (server.got[-1].body, server.got[-1]["content-encoding"]) == (body, coding.encode())
    if coding != "unheard-of":
        assert "none of this sandbox's" in (await scene.note(Kind.ALERT)).detail
    assert not scene.noted(Kind.ALERT)


async def _raw(scene: Scene, port: int, data: bytes) -> bytes:
    async with scene.talking(API, port) as (reader, writer):
        writer.write(data)
        try:
            return await reader.read(65_536)
        except (ConnectionError, ssl.SSLError):
            return b""


@pytest.mark.parametrize(
    "data",
    [
        request("GET /", f"Host: {OTHER}"),
        request("GET /", f"Host: {API}:1"),
        request("GET /", f"Host: {API}", f"Host: {API}"),
        request("GET /", f"Host: user@{API}"),
        request("GET /"),
        request(f"GET https://{API}/", f"Host: {API}"),
        request(f"GET https://{OTHER}/", f"Host: {API}"),
        request("GET *", f"Host: {API}"),
        request("GET path", f"Host: {API}"),
        request("GET /a\x01b", f"Host: {API}"),
        request("GET /\xe4", f"Host: {API}"),
        request("GET( /", f"Host: {API}"),
        request("G\xc4T /", f"Host: {API}"),
        request(f"CONNECT {OTHER}:443", f"Host: {API}"),
        request("TRACE /", f"Host: {API}"),
        request("GET /", f"Host: {API}", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AA"),
        request("GET /", f"Host: {API}", "Connection: Upgrade", "Upgrade: something"),
        request("POST /", f"Host: {API}", "Content-Length: 4", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        request("POST /", f"Host: {API}", "Content-Length: 4", "Content-Length: 5") + b"12345",
        request("POST /", f"Host: {API}", "Transfer-Encoding: chunked, identity") + b"0\r\n\r\n",
        request("POST /", f"Host: {API}", "Transfer-Encoding: gzip, chunked") + b"1\r\nx\r\n0\r\n\r\n",
        request("GET /", f"Host: {API}", "Bad Name: x"),
        request("POST /", f"Host: {API}", "X: a\r\n Transfer-Encoding: chunked", "Content-Length: 1") + b"x",
        request("GET /", f"Host: {API}\r\n .evil.example"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00\x01\x02\r\n\r\n",
    ],
)
async def test_a_request_that_is_not_for_the_dialled_host_goes_nowhere(scene: Scene, data: bytes) -> None:
    """Another Host, an absolute target, CONNECT, TRACE, h2c, smuggling: denied; one that is right passes."""
    token = secret()
    await scene.tell(token)
    keyed = data.replace(b"\r\n\r\n", f"\r\nX-Key: {token.placeholder}\r\n\r\n".encode(), 1)
    async with scene.serving() as server:
        said = await _raw(scene, server.port, keyed)
        assert said == b"" or said.split()[1] in (b"403", b"400"), said
        assert b"mitmproxy" not in said
        assert not server.got
        assert (await scene.ask(server.port, f"X-Key: {token.placeholder}")).status == 200
        assert server.got[-1]["x-key"] == VALUE.encode()


@pytest.mark.parametrize("host", [API.upper(), f"{API}.", "{API}:{port}"])
async def test_a_host_may_be_spelled_as_one_likes(scene: Scene, host: str) -> None:
    """In capitals, with a dot behind it, or with its port: it is the one that was dialled."""
    token = secret()
    await scene.tell(token)
    async with scene.serving() as server, scene.talking(API, server.port) as (reader, writer):
        writer.write(request("GET /", f"Host: {host.format(API=API, port=server.port)}", f"X-Key: {token.placeholder}"))
        assert (await read_answer(reader)).status == 200
        assert server.got[-1]["x-key"] == VALUE.encode()


async def test_each_request_on_a_connection_is_judged(scene: Scene) -> None:
    """The second with another host is a 403 that says so, and never leaves."""
    token = secret()
    await scene.tell(token)
    async with scene.serving() as server, scene.talking(API, server.port) as (reader, writer):
        writer.write(request("GET /1", f"Host: {API}"))
        assert (await read_answer(reader)).status == 200
        writer.write(request("GET /2", f"Host: {OTHER}", f"X-Key: {token.placeholder}"))
        answer = await read_answer(reader)
        assert (answer.status, OTHER in answer.body.decode()) == (403, True)
        assert len(server.got) == 1


@pytest.mark.parametrize("expect", [False, True])
@pytest.mark.parametrize("how", ["wrong name", "expired", "self-signed"])
async def test_an_upstream_that_is_not_who_it_should_be_gets_nothing(
    scene: Scene, how: str, expect: bool, tmp_path: Path
) -> None:
    """A certificate of another name, of old, or of nobody: a 502 that says why, behind a 100 too, and no request."""
    token = secret()
    await scene.tell(token)
    names, days = ([OTHER] if how == "wrong name" else [API]), (-1 if how == "expired" else 1)
    known = scene.authority
    if how == "self-signed":
        scene.authority = Authority(tmp_path)
    try:
        async with scene.serving(names=names, days=days) as server:
            scene.authority = known
            async with scene.talking(API, server.port) as (reader, writer):
                fields = ["Expect: 100-continue", "Content-Length: 1"] if expect else []
                writer.write(request("POST /", f"Host: {API}", f"X-Key: {token.placeholder}", *fields) + b"x" * expect)
                if expect:
                    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
                answer = await read_answer(reader)
            assert (answer.status, answer.fields["x-atoll-egress"]) == (502, "failed")
            assert b"ertificate" in answer.body
            assert not server.got
    finally:
        scene.authority = known
    noted = await scene.note()
    assert (noted.verdict, "ertificate" in noted.detail) == (Verdict.FAILED, True)


async def test_nobody_but_the_gate_is_served(scene: Scene) -> None:
    """A forged token, a plain proxy request, or nothing at all on the interceptor's port: refused; the gate is not."""
    await scene.tell(secret())
    port = await scene.interceptors.port()
    assert port is not None
    async with scene.serving() as server:
        for data in (
            f"CONNECT {API}:{server.port} HTTP/1.1\r\nProxy-Authorization: Bearer {'0' * 64}\r\n"
            "Atoll-Address: 127.0.0.1\r\n\r\n",
            f"GET http://127.0.0.1:{server.port}/ HTTP/1.1\r\nHost: {API}\r\n\r\n",
            f"CONNECT {API}:{server.port} HTTP/1.1\r\n\r\n",
            "x" * 100_000,
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(data.encode())
            said = b"HTTP/1.1 403"
            with suppress(ConnectionError):  # one that says too much is not heard out
                said = await reader.read(-1)
            assert said.startswith(b"HTTP/1.1 403")
            writer.close()
        assert not server.got
        assert (await scene.ask(server.port)).status == 200


async def test_a_host_without_a_secret_keeps_its_own_certificate(scene: Scene) -> None:
    """It is spliced: the client sees the upstream's authority; the bound host's is the installation's."""
    await scene.tell(secret())
    async with scene.serving(names=[OTHER, API]) as server:
        for host, issuer in ((OTHER, scene.authority.certificate), (API, scene.ca)):
            reader, writer = await scene.connect(host, server.port)
            await writer.start_tls(ssl.create_default_context(cafile=str(issuer)), server_hostname=host)
            writer.write(request("GET /", f"Host: {host}"))
            assert (await read_answer(reader)).status == 200
            writer.close()
        reader, writer = await scene.connect(API, server.port)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await writer.start_tls(
                ssl.create_default_context(cafile=str(scene.authority.certificate)), server_hostname=API
            )
        writer.close()


async def test_a_denial_is_explained_over_tls(scene: Scene) -> None:
    """A client that trusts the installation reads which rule it was and what to do; nothing was dialled for it."""
    await scene.tell(allow=["good.example"])
    async with scene.serving() as server:
        async with scene.talking(API, server.port) as (reader, writer):
            writer.write(request("POST /secret?token=x", f"Host: {API}", "Content-Length: 3") + b"abc")
            answer = await read_answer(reader)
        assert answer.status == 403
        assert b"not on this sandbox's list" in answer.body
        assert f'add "{API}:{server.port}"'.encode() in answer.body
        assert answer.fields["x-atoll-egress"] == "denied"
        assert not server.got
    noted = await scene.note()
    assert (noted.verdict, noted.path, noted.status) == (Verdict.DENIED, "/secret?token", 403)


async def test_what_one_has_nothing_to_do_with_is_reset(scene: Scene) -> None:
    """A client that trusts its server, but not the installation, gets an error of TLS once the host is denied."""
    stranger = ssl.create_default_context(cafile=str(scene.authority.certificate))
    async with scene.serving() as server:
        for allow in ([API], []):
            await scene.tell(allow=allow)
            _reader, writer = await scene.connect(API, server.port)
            with nullcontext() if allow else pytest.raises((ssl.SSLError, ConnectionError)):
                await writer.start_tls(stranger, server_hostname=API)
            writer.close()
            assert (await scene.note(Kind.CONNECTION)).verdict is (Verdict.ALLOWED if allow else Verdict.DENIED)
        assert server.dialled == 1


async def test_a_server_that_speaks_first_is_heard_on_a_bound_host(scene: Scene) -> None:
    """On other ports a client that says nothing, or speaks no TLS, is passed on as it is."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"welcome\n")
        writer.write(await reader.read(100))
        writer.close()

    await scene.tell(secret())
    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        for first in (b"", b"SSH-2.0-x\r\n"):
            reader, writer = await scene.connect(API, port)
            writer.write(first)
            assert (await reader.readexactly(8)) == b"welcome\n"
            writer.write(b"and so on" if not first else b"")
            assert await reader.read(-1) == (first or b"and so on")
            writer.close()


async def test_a_client_may_take_its_time_to_begin_with_tls(scene: Scene) -> None:
    """It is not taken for one that waits for its server: the value arrives however slow the guest is."""
    token = secret()
    await scene.tell(token)
    async with scene.serving() as server:
        reader, writer = await scene.connect(API, server.port)
        await asyncio.sleep(1.5)
        await writer.start_tls(scene.trusting(), server_hostname=API)
        writer.write(request("GET /", f"Host: {API}", f"X-Key: {token.placeholder}"))
        assert (await read_answer(reader)).status == 200
        assert server.got[-1]["x-key"] == VALUE.encode()
        writer.close()


async def test_rotation_holds_for_the_next_request_of_an_open_connection(scene: Scene) -> None:
    """A new value goes out at once on a kept connection; the old one is looked for in answers still."""
    token = secret()
    await scene.tell(token)

    async def echo_old(got: Got, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = VALUE.encode() + b"|" + got["x-key"]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    async with scene.serving(hello, echo_old) as server, scene.talking(API, server.port) as (reader, writer):
        writer.write(request("GET /", f"Host: {API}", f"X-Key: {token.placeholder}"))
        await read_answer(reader)
        fresh = secret(value="the fresh value", name="T")
        rotated = type(token)("T", token.placeholder, fresh.value, token.hosts)
        await scene.tell(rotated)
        writer.write(request("GET /", f"Host: {API}", f"X-Key: {token.placeholder}"))
        answer = await read_answer(reader)
        assert server.got[-1]["x-key"] == b"the fresh value"
        assert answer.body == f"{token.placeholder}|{token.placeholder}".encode()


async def test_revocation_ends_open_connections(scene: Scene) -> None:
    """Once a secret is revoked its connections are reset, and a new one carries the placeholder as it is."""
    token, stays = secret(), secret(value="another value")
    await scene.tell(token, stays)
    async with scene.serving() as server:
        async with scene.talking(API, server.port) as (reader, writer):
            writer.write(request("GET /", f"Host: {API}", f"X-Key: {token.placeholder}"))
            await read_answer(reader)
            await scene.tell(stays)
            writer.write(request("GET /", f"Host: {API}"))
            with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                await reader.readexactly(1)
        await scene.ask(server.port, f"X-Key: {token.placeholder}")
        assert server.got[-1]["x-key"] == token.placeholder.encode()


async def test_a_secret_does_not_open_the_door_to_its_host(scene: Scene) -> None:
    """Its host must be allowed as well; once it is, the value arrives."""
    token = secret()
    async with scene.serving() as server:
        await scene.tell(token, allow=[OTHER])
        assert (await scene.ask(server.port, f"X-Key: {token.placeholder}")).status == 403
        assert not server.got
        await scene.tell(token, allow=[API])
        assert (await scene.ask(server.port, f"X-Key: {token.placeholder}")).status == 200
        assert server.got[-1]["x-key"] == VALUE.encode()


async def test_a_request_on_an_open_connection_meets_the_policy_of_now(scene: Scene) -> None:
    """A connection whose host is not allowed any more is reset."""
    await scene.tell(secret())
    async with scene.serving() as server, scene.talking(API, server.port) as (reader, writer):
        writer.write(request("GET /", f"Host: {API}"))
        assert (await read_answer(reader)).status == 200
        await scene.tell(secret(), deny=[API])
        writer.write(request("GET /", f"Host: {API}"))
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        assert len(server.got) == 1


async def test_a_minted_certificate_is_for_one_name_and_some_days(scene: Scene) -> None:
    """So no second host can be asked for on its connection, and a stolen key is soon worth nothing."""
    await scene.tell(secret([API, OTHER]))
    async with scene.serving() as server, scene.talking(API, server.port) as (_reader, writer):
        shown = writer.get_extra_info("ssl_object").getpeercert()
        assert shown["subjectAltName"] == (("DNS", API),)
        life = ssl.cert_time_to_seconds(shown["notAfter"]) - ssl.cert_time_to_seconds(shown["notBefore"])
        assert life < 3 * 86_400


async def test_a_plain_request_to_a_host_with_a_secret_is_denied(scene: Scene) -> None:
    """It could be answered with the value in plain text; a placeholder in it is told of. Other hosts are reached."""
    token = secret()
    await scene.tell(token)
    reader, writer = await scene.connect(API, 80)
    writer.write(request("GET /", f"Host: {API}", f"X-Key: {token.placeholder}"))
    alert = await scene.note(Kind.ALERT)
    assert (alert.host, alert.port, "over TLS only" in alert.detail) == (API, 80, True)
    assert VALUE not in alert.detail
    answer = await read_answer(reader)
    assert (answer.status, b"use https" in answer.body) == (403, True)
    writer.close()
    async with await asyncio.start_server(_plain, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        for host, status in ((API, 403), (OTHER, 200)):
            reader, writer = await scene.connect(host, port)
            writer.write(request("GET /", f"Host: {host}", f"X-Key: {token.placeholder}"))
            assert (await read_answer(reader)).status == status
            assert (await scene.note(Kind.ALERT)).host == host
            writer.close()


async def _plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    writer.close()


async def test_without_an_interceptor_only_its_hosts_are_shut(scene: Scene, tmp_path: Path) -> None:
    """A host with a secret is reset and the record says why; one without is reached as ever."""
    alone = Scene(tmp_path)
    alone.authority = scene.authority
    alone.open()
    try:
        await alone.tell(secret())
        async with alone.serving(names=[API, OTHER]) as server:
            assert (await alone.ask(server.port, host=OTHER)).status == 200
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await alone.ask(server.port)
            assert len(server.got) == 1
        failed = next(passage for passage in alone.passages if passage.host == API)
        assert (failed.verdict, failed.rule) == (Verdict.FAILED, "interceptor")
        assert "Try again" in failed.detail
    finally:
        await alone.close()
