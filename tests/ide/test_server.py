"""The server holds a bounded amount of memory whatever its peers do; plain Daphne does not, which is why it is ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

ROOT = Path(__file__).resolve().parents[2]
MEBIBYTE = 2**20
APP = Path(__file__).with_name("server_app.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(kind: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, __file__ if kind == "watched" else str(APP), kind, str(port)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
    )
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        yield port, process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def watched() -> Iterator[int]:
    with running("watched") as (port, _process):
        yield port


@pytest.fixture(scope="module")
def ours() -> Iterator[int]:
    with running("ours") as (port, _process):
        yield port


def memory(port: int) -> int:
    return int(httpx.get(f"http://127.0.0.1:{port}/memory", timeout=20).text)


async def send_to_slow(port: int) -> None:
    """100 MiB to an application that never receives."""
    async with websockets.connect(f"ws://127.0.0.1:{port}/slow", max_size=None, close_timeout=0.1) as peer:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(6):
                for _ in range(1600):
                    await peer.send(bytes(65_536))
        grown = await asyncio.to_thread(memory, port)
        peer.transport.abort()
    raise Grown(grown)


class Grown(Exception):
    """Carries a measurement out of a coroutine that is torn down."""


def read_nothing(port: int, request: bytes) -> int:
    """Memory of the server while a peer asks for 200 MiB and reads none of it."""
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.sendall(request)
        time.sleep(4)
        return memory(port)


UPGRADE = (
    b"GET /flood HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def sent_to_slow(port: int) -> int:
    try:
        asyncio.run(send_to_slow(port))
    except Grown as measured:
        return int(measured.args[0])
    raise AssertionError


CASES: dict[str, Callable[[int], int]] = {
    "websocket in": sent_to_slow,
    "websocket out": lambda port: read_nothing(port, UPGRADE),
    "http out": lambda port: read_nothing(port, b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n"),
}


@pytest.mark.parametrize("case", CASES)
def test_plain_daphne_has_no_bound(case: str) -> None:
    """Daphne keeps everything a slow reader has not taken: the reason for our server."""
    with running("daphne") as (port, _process):
        before = memory(port)
        assert CASES[case](port) - before > 60


@pytest.mark.parametrize("case", CASES)
def test_slow_readers_cost_little(case: str) -> None:
    """A peer that reads nothing, or an application that receives nothing, costs a few MiB."""
    with running("ours") as (port, _process):
        before = memory(port)
        assert CASES[case](port) - before < 16


def test_refusal_is_an_http_response(ours: int) -> None:
    """An application can refuse a handshake with status, headers and body."""
    with httpx.Client() as client:
        answer = client.get(
            f"http://127.0.0.1:{ours}/refuse",
            headers={
                "Upgrade": "websocket",
                "Connection": "Upgrade",
                "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
                "Sec-WebSocket-Version": "13",
            },
        )
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


async def test_accept_headers_and_close_reason(ours: int) -> None:
    """Headers given with accept arrive, and so do a close code of 1001 and its reason."""
    async with websockets.connect(f"ws://127.0.0.1:{ours}/close") as peer:
        assert peer.response is not None
        assert peer.response.headers["x-trace"] == "abc"
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await peer.recv()
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1001, "time is up")


async def test_large_header_is_taken_and_a_larger_one_refused(ours: int) -> None:
    """64 KiB in one header line arrive; over 100 KiB the answer is 431, not a reset connection."""
    async with websockets.connect(f"ws://127.0.0.1:{ours}/echo", additional_headers={"x-large": "a" * 65_536}) as peer:
        await peer.send("hello")
        assert await peer.recv() == "hello"
    with pytest.raises(websockets.InvalidStatus) as refused:
        await websockets.connect(f"ws://127.0.0.1:{ours}/echo", additional_headers={"x-large": "a" * 120_000})
    assert refused.value.response.status_code == 431


async def test_large_message(ours: int) -> None:
    """A message of 100 MiB arrives in one piece, at a useful speed."""
    async with websockets.connect(
        f"ws://127.0.0.1:{ours}/echo", max_size=None, compression=None, ping_timeout=None
    ) as peer:
        await peer.send(bytes(100 * MEBIBYTE))
        async with asyncio.timeout(60):
            assert await peer.recv() == str(100 * MEBIBYTE)


def test_large_body_is_refused(ours: int) -> None:
    """A request body beyond the bound is answered with 413 before it is taken."""
    answer = httpx.post(f"http://127.0.0.1:{ours}/", content=bytes(9 * MEBIBYTE))
    assert answer.status_code == 413


async def test_sigterm_closes_sockets_and_ends() -> None:
    """SIGTERM sends 1001 to every socket, and the process ends within seconds even with a stuck application."""
    with running("ours") as (port, process):
        async with (
            websockets.connect(f"ws://127.0.0.1:{port}/echo") as peer,
            websockets.connect(f"ws://127.0.0.1:{port}/slow") as _stuck,
        ):
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await peer.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
            await asyncio.to_thread(process.wait, 12)
            assert time.monotonic() - began < 10


def wait_for_state(port: int, expected: dict[str, Any], seconds: float) -> None:
    """Until the watched server's state contains what is expected; an assertion shows what it is when it never does."""
    until = time.monotonic() + seconds
    while True:
        state = httpx.get(f"http://127.0.0.1:{port}/state", timeout=10).json()
        if state | expected == state:
            return
        assert time.monotonic() < until, state
        time.sleep(0.2)


def test_failed_stream_breaks_the_connection(watched: int) -> None:
    """A download whose application fails midway ends as a broken connection, not as a whole file and not as a hang."""
    with httpx.stream("GET", f"http://127.0.0.1:{watched}/break", timeout=10) as answer:
        assert answer.status_code == 200
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            answer.read()
    wait_for_state(watched, {"connections": []}, 10)


def test_paused_download_goes_on(watched: int) -> None:
    """A reader that pauses for longer than a vanished host is waited for still gets the whole file."""
    with httpx.stream("GET", f"http://127.0.0.1:{watched}/download", timeout=10) as answer:
        time.sleep(6)
        assert len(answer.read()) == 16 * MEBIBYTE
    wait_for_state(watched, {"connections": []}, 10)


def test_failure_before_the_response_is_an_error(watched: int) -> None:
    """An application that fails before it answers is answered for with 500."""
    assert httpx.get(f"http://127.0.0.1:{watched}/fail", timeout=10).status_code == 500
    wait_for_state(watched, {"connections": []}, 10)


def test_checker_survives_what_fails_in_it(watched: int) -> None:
    """When the reaping of an application fails, its client is cut off, and later ones are reaped and cancelled."""
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        httpx.get(f"http://127.0.0.1:{watched}/poison", timeout=10)
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"http://127.0.0.1:{watched}/stuck", timeout=0.5)
    wait_for_state(watched, {"connections": [], "cancelled": ["/stuck"]}, 15)


def fill_and_leave(port: int, path: str, *, reset: bool) -> None:
    """Send until the server reads no more, then go without goodbye; pings in between are not answered."""
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.sendall(UPGRADE.replace(b"/flood", path.encode()))
        assert peer.recv(4096).startswith(b"HTTP/1.1 101")
        peer.settimeout(1)
        # A binary frame of 64 KiB, masked with zeros.
        frame = b"\x82\xff" + struct.pack(">Q", 65_536) + bytes(4) + bytes(65_536)
        with pytest.raises(TimeoutError):
            peer.sendall(frame * 1600)
        # Longer than ping interval and timeout together: being held is no reason to be dropped.
        time.sleep(6)
        wait_for_state(port, {"connections": [path]}, 1)
        if reset:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
def test_dead_peer_of_a_held_socket_is_noticed(watched: int, *, reset: bool) -> None:
    """A peer that dies while its socket is not read is noticed: the stuck application is cancelled and forgotten."""
    path = f"/never-{reset}"
    fill_and_leave(watched, path, reset=reset)
    wait_for_state(watched, {"connections": []}, 20)
    assert path in httpx.get(f"http://127.0.0.1:{watched}/state").json()["cancelled"]


def test_disconnect_reaches_an_application_that_was_busy(watched: int) -> None:
    """An application that did not receive while its peer died finds the disconnect behind what was sent before."""
    fill_and_leave(watched, "/busy", reset=True)
    wait_for_state(watched, {"connections": [], "disconnected": ["/busy"]}, 20)


def serve_watched(port: int) -> None:
    """An application that fails in several ways, on our server with short times; /state tells how the server is."""
    import ide.server
    from ide.server import BoundedServer, Request, serve

    ide.server.VANISHED_SECONDS = 2
    servers: list[BoundedServer] = []
    cancelled: list[str] = []
    disconnected: list[str] = []

    class Watched(BoundedServer):
        def __init__(self, *args: Any, **options: Any) -> None:
            short = {"ping_interval": 1, "ping_timeout": 2, "application_close_timeout": 3}
            super().__init__(*args, **options | short)
            servers.append(self)

    class Poison(RuntimeError):
        pass

    handle_exception = Request.handle_exception

    def poisoned(request: Request, exception: BaseException) -> None:
        if isinstance(exception, Poison):
            raise exception
        handle_exception(request, exception)

    Request.handle_exception = poisoned  # type: ignore[assignment,method-assign]

    def state() -> dict[str, Any]:
        paths = [protocol.path.decode() for protocol in servers[0].connections]
        # Answered requests for the state itself are still to be reaped.
        paths = [path for path in paths if path != "/state"]
        return {"connections": paths, "cancelled": cancelled, "disconnected": disconnected}

    async def http(path: str, send: Any) -> None:
        if path == "/stuck":
            await asyncio.sleep(60)
        if path == "/poison":
            raise Poison
        if path == "/fail":
            raise RuntimeError
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if path == "/break":
            await send({"type": "http.response.body", "body": bytes(65_536), "more_body": True})
            raise RuntimeError
        if path == "/download":
            for _ in range(256):
                await send({"type": "http.response.body", "body": bytes(65_536), "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            return
        await send({"type": "http.response.body", "body": json.dumps(state()).encode()})

    async def websocket(path: str, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await asyncio.sleep(10 if path == "/busy" else 120)
        while (await receive())["type"] != "websocket.disconnect":
            pass
        disconnected.append(path)

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
        path = scope["path"]
        await receive()
        try:
            if scope["type"] == "http":
                await http(path, send)
            else:
                await websocket(path, receive, send)
        except asyncio.CancelledError:
            cancelled.append(path)
            raise

    serve(application, bind="127.0.0.1", port=port, server=Watched)


if __name__ == "__main__":
    serve_watched(int(sys.argv[2]))
