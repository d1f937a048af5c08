"""What an interceptor costs beside plain mitmproxy, which only decrypts and encrypts: in processor time, in turns.

Both serve the same requests of the same client to the same server over TLS. Processor time is that of the one process
that is measured, so neither the client nor whatever else runs here counts: what it says is what one core could do.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from bench.report import Number, median
from tests.vm.egress.interceptor.scene import API, Got, Scene, hello, read_answer, request, secret
from vm.node.interceptors import CHECKOUT

RUNS = 5
CONNECTIONS, REQUESTS = 10, 60
SIZE = 60 * 2**20
_TICK = os.sysconf("SC_CLK_TCK")

type Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
type Connect = Callable[[], AbstractAsyncContextManager[Streams]]


def egress() -> list[Number]:
    """Requests and bytes a second of processor time."""
    with tempfile.TemporaryDirectory(prefix="atoll-bench-egress-") as place:
        return asyncio.run(_measured(Path(place)))


async def _measured(place: Path) -> list[Number]:
    scene = Scene(place)
    await scene.start()
    token = secret(value="a-key-of-the-usual-length-0123456789abcdef")
    await scene.tell(token)
    plain, port = await _plain(place, scene)
    try:
        async with scene.serving(_answer) as server:

            def ours() -> AbstractAsyncContextManager[Streams]:
                return scene.talking(API, server.port)

            def theirs() -> AbstractAsyncContextManager[Streams]:
                return _through(place, port, server.port)

            ways: dict[int, Connect] = {scene.interceptors._processes[0].process.pid: ours, plain.pid: theirs}
            requests: dict[int, list[float]] = {pid: [] for pid in ways}
            bytes_: dict[int, list[float]] = {pid: [] for pid in ways}
            for _ in range(RUNS):
                for pid, connect in ways.items():
                    requests[pid].append(await _requests(pid, connect, token.placeholder))
                    bytes_[pid].append(await _bytes(pid, connect))
    finally:
        plain.terminate()
        await plain.wait()
        await scene.close()
    (mine, other) = ways
    return [
        Number(
            "requests with a secret, intercepted",
            median(requests[mine]),
            "per core and second",
            median(requests[other]),
            "plain mitmproxy",
            at_least=0.65,
        ),
        Number(
            "bytes of an answer, intercepted",
            median(bytes_[mine]) / 1e6,
            "MB per core and second",
            median(bytes_[other]) / 1e6,
            "plain mitmproxy",
            at_least=0.5,
        ),
    ]


async def _answer(got: Got, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if not got.line.startswith(b"GET /big"):
        await hello(got, reader, writer)
        return
    piece = bytes(range(256)) * 256
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
    for _ in range(SIZE // len(piece)):
        writer.write(piece)
        await writer.drain()


async def _plain(place: Path, scene: Scene) -> tuple[asyncio.subprocess.Process, int]:
    """mitmproxy as it comes, told only what it must be told to be comparable."""
    port = 18_099
    process = await asyncio.create_subprocess_exec(
        *(str(CHECKOUT / ".venv-interceptor/bin/mitmdump"), "-q", "--mode", f"regular@127.0.0.1:{port}"),
        *("--set", "connection_strategy=lazy", "--set", "upstream_cert=false"),
        *("--set", "stream_large_bodies=1m", "--set", f"confdir={place / 'plain'}"),
        *("--set", f"ssl_verify_upstream_trusted_ca={scene.authority.certificate}"),
        stdin=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(60):
        while True:
            try:
                _reader, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)
            else:
                writer.close()
                return process, port


@asynccontextmanager
async def _through(place: Path, proxy: int, port: int) -> AsyncIterator[Streams]:
    context = ssl.create_default_context(cafile=str(place / "plain" / "mitmproxy-ca-cert.pem"))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy, limit=2**20)
    writer.write(f"CONNECT localhost:{port} HTTP/1.1\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    await writer.start_tls(context, server_hostname=API)
    try:
        yield reader, writer
    finally:
        writer.close()


def _processor(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


async def _requests(pid: int, connect: Connect, placeholder: str) -> float:
    asked = request("GET /", f"Host: {API}", f"Authorization: Bearer {placeholder}")

    async def work() -> None:
        async with connect() as (reader, writer):
            for _ in range(REQUESTS):
                writer.write(asked)
                await read_answer(reader)

    before = _processor(pid)
    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))
    return CONNECTIONS * REQUESTS / (_processor(pid) - before)


async def _bytes(pid: int, connect: Connect) -> float:
    async with connect() as (reader, writer):
        before = _processor(pid)
        writer.write(request("GET /big", f"Host: {API}"))
        await reader.readuntil(b"\r\n\r\n")
        got = 0
        while got < SIZE:
            got += len(await reader.read(2**20))
        return SIZE / (_processor(pid) - before)
