"""What the gate costs beside HAProxy (bench/spliced.py), and an interceptor beside plain mitmproxy, in turns.

The latter two serve the same requests of the same client to the same server over TLS; mitmproxy only decrypts and
encrypts. Processor time is that of the one process that is measured, so neither the client nor whatever else runs here
counts: what it says is what one core could do.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from bench.report import Number, median
from bench.shared import FLOOD, shared
from bench.spliced import spliced
from tests.vm.egress.interceptor.scene import API, Got, Scene, endless, hello, read_answer, request, secret
from vm.node.interceptors import CHECKOUT

RUNS = 5
CONNECTIONS, REQUESTS = 12, 60
PROCESSES = 3
IDLE = 1000
SIZE = 60 * 2**20
BESIDE = 12 * 2**20  # bytes of the download beside others
_TICK = os.sysconf("SC_CLK_TCK")

type Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
type Connect = Callable[[], AbstractAsyncContextManager[Streams]]


def egress() -> list[Number]:
    """What passes untouched, what is intercepted, and what a connection holds that waits."""
    numbers = spliced() + shared()
    with tempfile.TemporaryDirectory(prefix="atoll-bench-egress-") as place:
        numbers += asyncio.run(_measured(Path(place)))
    with tempfile.TemporaryDirectory(prefix="atoll-bench-egress-") as place:
        numbers.append(asyncio.run(_scaled(Path(place))))
    with tempfile.TemporaryDirectory(prefix="atoll-bench-egress-") as place:
        return [*numbers, asyncio.run(_beside(Path(place)))]


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
            idle = await _idle(scene, server.port, token.placeholder)
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
        Number(
            f"each of {IDLE} idle connections, intercepted",
            idle,
            "KB",
            at_most=60,
            note="their upstreams are let go of after 10 s; until then each is 100 KB, of which 73 are OpenSSL's",
        ),
    ]


async def _scaled(place: Path) -> Number:
    """What several processes could do, had each a core: all requests by the processor time of the busiest."""
    scene = Scene(place, interceptors=PROCESSES)
    await scene.start()
    token = secret(value="a-key-of-the-usual-length-0123456789abcdef")
    try:
        await scene.tell(token)
        async with scene.serving(_answer) as server:
            pids = [one.process.pid for one in scene.interceptors._processes]
            together, single = [], []
            for _ in range(RUNS):
                before = [_processor(pid) for pid in pids]
                await _ask(lambda: scene.talking(API, server.port), token.placeholder)
                used = [_processor(pid) - start for pid, start in zip(pids, before, strict=True)]
                together.append(CONNECTIONS * REQUESTS / max(used))
                single.append(CONNECTIONS * REQUESTS / sum(used))
    finally:
        await scene.close()
    return Number(
        f"requests with a secret, over {PROCESSES} interceptors",
        median(together),
        "per second, with a core for each",
        median(single),
        "one of them",
        at_least=0.8 * PROCESSES,
    )


async def _beside(place: Path) -> Number:
    """What a flood of one machine's leaves another's download of an interceptor's time."""
    scene = Scene(place)
    await scene.start()
    alone, many = [], []
    (place / "theirs").mkdir()
    try:
        with scene.beside(place / "theirs") as theirs:
            for whose in (scene, theirs):
                await whose.tell(secret(value="a-key-of-the-usual-length-0123456789abcdef"))
            async with scene.serving(endless) as server:
                for _ in range(RUNS):
                    alone.append(await _download(scene, server.port))
                    async with _flood(theirs, server.port):
                        many.append(await _download(scene, server.port))
    finally:
        await scene.close()
    return Number(
        f"a download beside {FLOOD} of another sandbox, intercepted",
        median(many),
        "MB per core and second",
        median(alone),
        "alone",
        at_least=0.45,
        note="half is the fair share, of which many connections cost a little",
    )


async def _download(scene: Scene, port: int) -> float:
    """MB of a download for each second of the interceptor's processor time, whoever it was for."""
    pid = scene.interceptors._processes[0].process.pid
    reader, writer = await scene.connect(API, port)
    await writer.start_tls(scene.trusting("http/1.1"), server_hostname=API)
    writer.write(request("GET /", f"Host: {API}"))
    got = len(await reader.read(2**20))
    before, begun = _processor(pid), got
    while got - begun < BESIDE:
        got += len(await reader.read(2**20))
    writer.transport.abort()
    return (got - begun) / 1e6 / (_processor(pid) - before)


@asynccontextmanager
async def _flood(scene: Scene, port: int) -> AsyncIterator[None]:
    """So many downloads, all of which have begun."""
    begun = [asyncio.Event() for _ in range(FLOOD)]

    async def download(one: asyncio.Event) -> None:
        reader, writer = await scene.connect(API, port)
        await writer.start_tls(scene.trusting("http/1.1"), server_hostname=API)
        writer.write(request("GET /", f"Host: {API}"))
        await reader.readuntil(b"\r\n\r\n")
        one.set()
        with suppress(OSError):
            while await reader.read(2**20):
                pass

    downloads = [asyncio.ensure_future(download(one)) for one in begun]
    try:
        async with asyncio.timeout(60):
            await asyncio.gather(*(one.wait() for one in begun))
        yield
    finally:
        for one in downloads:
            one.cancel()
        await asyncio.wait(downloads)


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
    before = _processor(pid)
    await _ask(connect, placeholder)
    return CONNECTIONS * REQUESTS / (_processor(pid) - before)


async def _ask(connect: Connect, placeholder: str) -> None:
    asked = request("GET /", f"Host: {API}", f"Authorization: Bearer {placeholder}")

    async def work() -> None:
        async with connect() as (reader, writer):
            for _ in range(REQUESTS):
                writer.write(asked)
                await read_answer(reader)

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))


async def _idle(scene: Scene, port: int, placeholder: str) -> float:
    """KB of an interceptor's own memory for each connection that has had its answer and is kept, TLS on both sides."""
    pid = scene.interceptors._processes[0].process.pid
    context = scene.trusting("http/1.1")
    asked = request("GET /", f"Host: {API}", f"Authorization: Bearer {placeholder}")
    before = _own_memory(pid)
    async with AsyncExitStack() as stack:
        for _ in range(IDLE):
            reader, writer = await scene.connect(API, port)
            # A writer that nobody holds closes its connection
            stack.callback(writer.close)
            await writer.start_tls(context, server_hostname=API)
            writer.write(asked)
            await read_answer(reader)
        assert scene.gate.connections == IDLE
        await asyncio.sleep(scene.config.interceptor_resting + 2)
        return (_own_memory(pid) - before) / IDLE


def _own_memory(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


async def _bytes(pid: int, connect: Connect) -> float:
    async with connect() as (reader, writer):
        before = _processor(pid)
        writer.write(request("GET /big", f"Host: {API}"))
        await reader.readuntil(b"\r\n\r\n")
        got = 0
        while got < SIZE:
            got += len(await reader.read(2**20))
        return SIZE / (_processor(pid) - before)
