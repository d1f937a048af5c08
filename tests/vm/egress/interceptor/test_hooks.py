"""Hooks in real processes behind a real interceptor: what they see and change, and that whatever goes wrong denies."""

from __future__ import annotations

import asyncio
import gzip
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.vm.egress.interceptor import http2
from tests.vm.egress.interceptor.http2 import Message
from tests.vm.egress.interceptor.scene import (
    API,
    OTHER,
    VALUE,
    Answer,
    Scene,
    answering,
    hello,
    read_answer,
    request,
    secret,
)
from vm.egress.journal import Verdict

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOOKS = """
import os, time
from dataclasses import replace
from vm.egress.hooks import Refused, Response

def change(request, response=None):
    if response is not None:
        seen = (("X-Seen", repr(response.body)),)
        body = None if response.body is None else response.body.replace(b"hello", b"HELLO!")
        return replace(response, status=201, headers=response.headers + seen, body=body)
    headers = tuple(pair for pair in request.headers if pair[0].lower() != "x-drop")
    body = None if request.body is None else request.body.replace(b"cat", b"tiger")
    return replace(request, path="/changed" + request.path, headers=headers + (("X-Hook", repr(request)),), body=body)

def misbehave(request, response=None):
    how = dict(request.headers).get("X-How", "")
    if (response is None) == how.startswith("late "):
        return None
    how = how.removeprefix("late ")
    if how == "refuse":
        raise Refused("not on a Friday")
    if how == "fail":
        raise ValueError("a word of the request")
    if how == "hang":
        time.sleep(600)
    if how == "crash":
        os._exit(3)
    if how == "grow":
        bytearray(2**31)
    if how == "type":
        return "yes"
    if how == "host":
        return replace(request, host="evil.example")
    if how == "header":
        given = response or request
        return replace(given, headers=given.headers + (("X-Bad", "a\\r\\nX-Worse: b"),))
    if how == "host header":
        return replace(request, headers=request.headers + (("Host", "evil.example"),))
    if how == "much":
        return replace(request, body=bytes(2**22))
    if how == "long body":
        return replace(request, body=bytes(2**20 + 1))
    if how == "bytes":
        return replace(request, headers=request.headers + ((b"X-Bad", b"a"),))
    if how == "empty":
        return replace(response, status=204)
    if how == "trace":
        return replace(request, method="TRACE")
    return None
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """An interceptor with hooks: `change` for one host, `misbehave` for another, and one that is not there."""
    hooks = (f"acme_hooks.change={API}", f"acme_hooks.misbehave={OTHER}", "acme_hooks.missing=*.missing.example")
    # not below pytest's directory: whom an interceptor runs as may not look into that
    with tempfile.TemporaryDirectory(prefix="atoll-hooks-") as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "acme_hooks.py").write_text(HOOKS)
        scene = Scene(tmp_path_factory.mktemp("scene"), hooks=hooks, hooks_path=place)
        scene.records["a.missing.example"] = "127.0.0.1"
        await scene.start()
        yield scene
        await scene.close()


async def test_a_hook_changes_a_request_and_its_answer(scene: Scene) -> None:
    """Path, headers and body, before values go in: what it sees has placeholders, and so has what it makes of it."""
    token = secret(places=["body"])
    await scene.tell(token)
    async with scene.serving(answering("200 OK\r\nContent-Length: 6", b"hello\n")) as server:
        answer = await scene.ask(
            server.port, f"X-Key: {token.placeholder}", "X-Drop: 1", body=f"cat {token.placeholder}".encode()
        )
        got = server.got[0]
    assert got.line == b"POST /changed/ HTTP/1.1"
    assert (got["x-key"], got["x-drop"], got["content-length"]) == (VALUE.encode(), b"", str(len(got.body)).encode())
    assert got.body == f"tiger {VALUE}".encode()
    assert (answer.status, answer.body, answer.fields["x-seen"]) == (201, b"HELLO!\n", r"b'hello\n'")
    passage = await scene.note()
    assert (passage.status, passage.path, passage.verdict) == (201, "/changed/", Verdict.ALLOWED)


async def test_a_hook_never_sees_a_value(scene: Scene) -> None:
    """Neither in a request nor in the answer that echoes it; the server, for control, got it."""
    token = secret()
    await scene.tell(token)
    echo = f"<{VALUE}>".encode()
    async with scene.serving(answering(f"200 OK\r\nContent-Length: {len(echo)}", echo)) as server:
        answer = await scene.ask(server.port, f"X-Key: {token.placeholder}")
        seen = server.got[0]["x-hook"].decode()
        assert server.got[0]["x-key"] == VALUE.encode()
    # what the hook wrote down held the placeholder, which was filled on the way out
    assert seen.count(VALUE) == 1
    assert token.placeholder in answer.fields["x-seen"]
    assert VALUE not in answer.raw.decode()


async def test_hosts_with_a_hook_need_no_secret(scene: Scene) -> None:
    """Their TLS ends at the interceptor, and plain HTTP to them is denied."""
    await scene.tell()
    async with scene.serving() as server:
        assert (await scene.ask(server.port)).status == 201
        reader, writer = await scene.connect(API, server.port)
        writer.write(request("GET /", f"Host: {API}"))
        said = await asyncio.wait_for(reader.read(), 20)
        writer.close()
    assert said.startswith(b"HTTP/1.1 403")
    assert b"has a hook: use https" in said


async def test_what_streams_is_seen_by_its_head_only(scene: Scene) -> None:
    """A body in chunks, in both directions, passes piece by piece; the hook is told that there is one it cannot see."""
    await scene.tell()
    chunked = answering("200 OK\r\nTransfer-Encoding: chunked", b"3\r\nhel\r\n", b"2\r\nlo\r\n", b"0\r\n\r\n")
    async with scene.serving(chunked) as server, scene.talking(API, server.port) as (reader, writer):
        writer.write(request("POST /", f"Host: {API}", "Transfer-Encoding: chunked") + b"3\r\ncat\r\n0\r\n\r\n")
        answer = await read_answer(reader)
        got = server.got[0]
    assert (got.line, got.body) == (b"POST /changed/ HTTP/1.1", b"cat")
    assert b"body=None" in got["x-hook"]
    assert (answer.status, answer.body, answer.fields["x-seen"]) == (201, b"hello", "None")


async def test_hooks_are_asked_over_http2(scene: Scene) -> None:
    """A request without a body is one with an empty body, and its answer is seen."""
    await scene.tell()

    def answer(got: Message) -> tuple[http2.Fields, list[bytes], http2.Fields]:
        return [(":status", "200"), ("content-length", "5")], [b"hello"], []

    async with http2.serving(scene, answer) as (port, got), http2.client(scene, port) as guest:
        said = await guest.ask(("x-some", "thing"), authority=f"{API}:{port}")
    assert got[0].fields[":path"].startswith("/changed/")
    assert "body=b''" in got[0].fields["x-hook"]
    assert (said.fields[":status"], said.body) == ("201", b"HELLO!")


@pytest.mark.parametrize("status", ["302", "200"])
async def test_an_answer_that_is_a_head_only_passes_its_hooks(scene: Scene, status: str) -> None:
    """Over HTTP/2 a redirect, or an error of gRPC, ends with its head and has no length: its body is empty."""
    await scene.tell()

    def answer(got: Message) -> tuple[http2.Fields, list[bytes], http2.Fields]:
        return [(":status", status), ("location", "/x")], [], []

    async with http2.serving(scene, answer) as (port, _got), http2.client(scene, port) as guest:
        said = await guest.ask()
    assert (said.fields[":status"], said.fields["x-seen"], said.body) == ("201", "b''", b"")
    assert (await scene.note()).status == 201


async def test_an_answer_to_head_passes_its_hooks_once(scene: Scene) -> None:
    """However long the body would be that it tells of: there is none that could stream."""
    await scene.tell()
    async with (
        scene.serving(answering(f"200 OK\r\nContent-Length: {2**30}")) as server,
        scene.talking(API, server.port) as (reader, writer),
    ):
        writer.write(request("HEAD /", f"Host: {API}"))
        head = await reader.readuntil(b"\r\n\r\n")
    assert head.lower().count(b"x-seen: b''\r\n") == head.lower().count(b"x-seen") == 1
    assert b"content-length: %d\r\n" % 2**30 in head.lower()


async def _misbehaving(scene: Scene, port: int, how: str) -> Answer:
    return await scene.ask(port, f"X-How: {how}", host=OTHER)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("refuse", "refused it: not on a Friday"),
        ("fail", "failed: ValueError in acme_hooks.py"),
        ("crash", "ended without an answer"),
        ("grow", "failed: MemoryError"),
        ("type", "it returned str"),
        ("header", "returned what cannot be sent"),
        ("host", "names another host"),
        ("trace", "TRACE is not for a server"),
        ("much", "it returned too much"),
        ("long body", "returned what cannot be sent"),
        ("bytes", "failed: TypeError"),
    ],
)
async def test_a_hook_that_goes_wrong_denies(scene: Scene, how: str, said: str) -> None:
    """The server gets nothing, the guest and the journal are told, and the next request passes."""
    await scene.tell()
    async with scene.serving(names=[OTHER]) as server:
        denied = await _misbehaving(scene, server.port, how)
        assert server.got == []
        passage = await scene.note()
        assert (await _misbehaving(scene, server.port, "well")).status == 200
    assert denied.status == 403
    assert said in denied.body.decode()
    assert passage.verdict is Verdict.DENIED
    assert said in passage.detail
    assert "a word of the request" not in passage.detail


@pytest.mark.parametrize(
    ("how", "said"),
    [("late refuse", "not on a Friday"), ("late fail", "ValueError"), ("late crash", "ended"), ("late header", "sent")],
)
async def test_one_that_goes_wrong_with_an_answer_denies(scene: Scene, how: str, said: str) -> None:
    """The guest has nothing of the answer, be it whole or a stream that began."""
    await scene.tell()
    whole = answering("200 OK\r\nX-Mark: marked\r\nContent-Length: 6", b"marked")
    stream = answering("200 OK\r\nX-Mark: marked\r\nTransfer-Encoding: chunked", b"6\r\nmarked\r\n0\r\n\r\n")
    async with scene.serving(whole, stream, names=[OTHER]) as server:
        denied = await _misbehaving(scene, server.port, how)
        assert (denied.status, said in denied.body.decode()) == (403, True)
        assert b"marked" not in denied.raw
        assert said in (await scene.note()).detail
        async with scene.talking(OTHER, server.port) as (reader, writer):
            writer.write(request("GET /", f"Host: {OTHER}", f"X-How: {how}"))
            assert b"marked" not in await asyncio.wait_for(reader.read(), 20)
        passage = await scene.note()
    assert (passage.verdict, said in passage.detail) == (Verdict.DENIED, True)


@pytest.mark.parametrize("framing", ["Content-Length: 6\r\n\r\nmarked", "Connection: close\r\n\r\nmarked"])
async def test_an_answer_that_a_hook_makes_empty_has_no_body(scene: Scene, framing: str) -> None:
    """Neither the body that it had as a whole, nor one that streams."""
    await scene.tell()
    async with (
        scene.serving(answering(f"200 OK\r\n{framing}", close=True), names=[OTHER]) as server,
        scene.talking(OTHER, server.port) as (reader, writer),
    ):
        writer.write(request("GET /", f"Host: {OTHER}", "X-How: late empty", "Connection: close"))
        said = await asyncio.wait_for(reader.read(), 20)
    assert (said[9:12] in (b"204", b"502"), b"marked" in said) == (True, False)


async def test_a_hook_that_hangs_denies_after_its_time(scene: Scene) -> None:
    """A request that waited behind it is denied as well; a later one finds a new process."""
    await scene.tell()
    async with scene.serving(names=[OTHER]) as server:
        assert (await _misbehaving(scene, server.port, "well")).status == 200
        began = time.monotonic()
        denied = await _misbehaving(scene, server.port, "hang")
        assert 4 < time.monotonic() - began < 15
        assert (denied.status, "within 5 seconds" in denied.body.decode()) == (403, True)
        assert (await _misbehaving(scene, server.port, "well")).status == 200


async def test_a_host_that_a_hook_names_by_itself_changes_nothing(scene: Scene) -> None:
    """Framing, and whom a request is for, are not a hook's."""
    await scene.tell()
    async with scene.serving(names=[OTHER]) as server:
        assert (await _misbehaving(scene, server.port, "host header")).status == 200
        assert [value for name, value in server.got[0].fields if name.lower() == b"host"] == [OTHER.encode()]


async def test_a_hook_that_cannot_be_loaded_denies(scene: Scene) -> None:
    """Its hosts are closed rather than open."""
    await scene.tell()
    name = "a.missing.example"
    await scene.tell(allow=["*.missing.example", API])
    async with scene.serving(names=[name]) as server:
        denied = await scene.ask(server.port, host=name)
        assert server.got == []
    assert (denied.status, "could not be loaded: AttributeError" in denied.body.decode()) == (403, True)


def _children(scene: Scene) -> dict[int, bytes]:
    """The processes that run hooks, and their command lines."""
    interceptor = scene.interceptors._processes[0].process.pid
    return {
        int(status.parent.name): (status.parent / "cmdline").read_bytes()
        for status in Path("/proc").glob("[0-9]*/status")
        if f"\nPPid:\t{interceptor}\n" in status.read_text()
    }


_FAR_TOO_LONG = "x" * 70_000
_PACKED = gzip.compress(bytes(3 * 2**20))
_MUCH = "".join(f"\r\nX-{number}: {60_000 * 'ä'}" for number in range(4))


@pytest.mark.parametrize(
    ("path", "fields", "body", "said"),
    [
        (f"/{_FAR_TOO_LONG}", [], b"", "its path is not printable ASCII of at most 64 KiB"),
        ("/", [f"X-Some: {_FAR_TOO_LONG}"], b"", "a value in its headers is longer than 64 KiB"),
        ("/", [f"{'x' * 300}: y"], b"", "a name in its headers is longer than 256 bytes"),
        ("/", ["Content-Encoding: gzip"], _PACKED, "no hook can read the body: it becomes longer than 1 MiB"),
    ],
)
async def test_a_request_that_no_hook_can_be_shown_is_denied(
    scene: Scene, path: str, fields: list[str], body: bytes, said: str
) -> None:
    """The server gets nothing, the guest and the journal are told why, and the hook's one process lives on."""
    await scene.tell()
    async with scene.serving(names=[OTHER]) as server:
        assert (await _misbehaving(scene, server.port, "well")).status == 200
        await scene.note()
        before = _children(scene)
        denied = await scene.ask(server.port, *fields, host=OTHER, path=path, body=body)
        passage = await scene.note()
        assert len(server.got) == 1
        assert (await _misbehaving(scene, server.port, "well")).status == 200
    assert (denied.status, said in denied.body.decode()) == (403, True)
    assert (passage.verdict, passage.rule, said in passage.detail) == (Verdict.DENIED, "hook", True)
    assert _children(scene) == before


@pytest.mark.parametrize(
    ("head", "body", "said"),
    [
        ("600 Yes\r\nX-Mark: marked", b"", "its status is not one of 101 to 599"),
        (f"200 OK\r\nX-Mark: marked\r\nX-Some: {_FAR_TOO_LONG}", b"", "a value in its headers is longer than 64 KiB"),
        ("200 OK\r\nX-Mark: marked\r\n on two lines", b"", "or broken over lines"),
        (f"200 OK\r\nX-Mark: marked\r\n{'x' * 300}: y", b"", "a name in its headers is longer than 256 bytes"),
        ("200 OK\r\nContent-Encoding: gzip", _PACKED, "no hook can read the body: it becomes longer than 1 MiB"),
        (f"200 OK{_MUCH}", b"marked".ljust(2**20), "it would be shown more than 4 MiB"),
    ],
)
async def test_an_answer_that_no_hook_can_be_shown_is_denied(scene: Scene, head: str, body: bytes, said: str) -> None:
    """The guest has nothing of it, be it whole or a stream, and reads why; the hook's one process lives on."""
    await scene.tell()
    asked = request("POST /", f"Host: {OTHER}", f"Content-Length: {2**20}") + bytes(2**20)
    whole = answering(f"{head}\r\nContent-Length: {len(body)}", body)
    stream = answering(f"{head}\r\nTransfer-Encoding: chunked", b"6\r\nmarked\r\n0\r\n\r\n")
    async with scene.serving(hello, whole, stream, names=[OTHER]) as server:
        assert (await _misbehaving(scene, server.port, "well")).status == 200
        await scene.note()
        before = _children(scene)
        async with scene.talking(OTHER, server.port) as (reader, writer):
            writer.write(asked)
            denied = await read_answer(reader)
        passage = await scene.note()
        assert _children(scene) == before
        if not body:
            async with scene.talking(OTHER, server.port) as (reader, writer):
                writer.write(request("GET /", f"Host: {OTHER}"))
                assert b"marked" not in await asyncio.wait_for(reader.read(), 20)
            assert said in (await scene.note()).detail
    async with scene.serving(names=[OTHER]) as server:
        assert (await _misbehaving(scene, server.port, "well")).status == 200
    assert (denied.status, said in denied.body.decode(), b"marked" in denied.raw) == (403, True, False)
    assert (passage.verdict, passage.rule, said in passage.detail) == (Verdict.DENIED, "hook", True)
    assert _children(scene) == before


async def test_hooks_run_where_no_value_is(scene: Scene) -> None:
    """Their processes are the interceptor's children, with its user and a directory of the administrator's."""
    await scene.tell()
    async with scene.serving() as server:
        await scene.ask(server.port)
    children = _children(scene)
    assert any(b"acme_hooks.change" in command for command in children.values())
    for pid in children:
        assert Path(f"/proc/{pid}/environ").stat().st_uid == 0  # not dumpable: another of its user cannot look in
        assert "Max core file size        0" in Path(f"/proc/{pid}/limits").read_text()
