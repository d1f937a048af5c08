"""Exposed ports: the same server in a guest behind the gateway, and on this host behind aiohttp, visited in turns."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, TCPConnector
from deno_sandbox import DenoDeploy

from bench.report import Number, median
from tests.installation import CHECKOUT, Installation
from tests.sdk.conftest import fake_installation

RUNS = 5
SIZE = 64 * 2**20
VISITORS = 16
SECONDS = 3.0  # of each run of requests
PROGRAM = CHECKOUT / "tests" / "sdk" / "http_server.py"


def http(installation: Installation) -> list[Number]:
    """MB/s of a download and requests/s on kept connections, beside aiohttp proxying to a process of this host.

    What is promised is the way in, so its agent is a process of this host, too; a guest's numbers are most of all those
    of its processor, which is emulated where there is no KVM.
    """
    keys = installation.data / "keys"
    tls = ssl.create_default_context(cafile=keys / "egress-ca.pem")
    with (
        tempfile.TemporaryDirectory(prefix="atoll-bench-") as work,
        _program(str(PROGRAM), "0") as upstream,
        _program("-m", "bench.http_proxy", upstream, str(keys / "gateway.pem"), str(keys / "gateway.key")) as proxy,
        fake_installation(Path(work), boot_delay=0.2) as near,
        DenoDeploy().sandbox.create() as sandbox,
    ):
        with _pointed(near.client_environment()):
            stack = DenoDeploy().sandbox.create()
            beside = stack.__enter__()
        try:
            targets = [
                (f"https://127.0.0.1:{proxy}", tls),
                (_served(beside), ssl.create_default_context(cafile=near.authority)),
                (_served(sandbox), tls),
            ]
            speeds, rates = [], []
            for _ in range(RUNS):
                speeds.append([asyncio.run(_download(*target)) for target in targets])
                rates.append([asyncio.run(_requests(*target)) for target in targets])
        finally:
            stack.__exit__(None, None, None)
        inside = _inside(sandbox)
    speed, rate = ([median(column) for column in zip(*rows, strict=True)] for rows in (speeds, rates))
    return [
        Number("exposed HTTP, a download", speed[1], "MB/s", speed[0], "aiohttp", at_least=0.5),
        Number(f"exposed HTTP, {VISITORS} visitors", rate[1], "requests/s", rate[0], "aiohttp", at_least=0.5),
        Number("exposed HTTP, a download from a guest", speed[2], "MB/s"),
        Number(
            f"exposed HTTP, {VISITORS} visitors of a guest",
            rate[2],
            "requests/s",
            inside,
            "inside it",
        ),
    ]


@contextmanager
def _pointed(environment: dict[str, str]) -> Iterator[None]:
    """The SDK reads its environment when it is constructed."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.update({name: before[name] for name in environment if name in before})


@contextmanager
def _program(*arguments: str) -> Iterator[str]:
    """A Python program that prints its port."""
    process = subprocess.Popen([sys.executable, *arguments], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def _served(sandbox: Any) -> str:
    sandbox.fs.write_text_file("http_server.py", PROGRAM.read_text())
    sandbox.spawn("sh", args=["-c", "exec python3 http_server.py 8080 > port.txt"])
    while not any(entry["name"] == "port.txt" for entry in sandbox.fs.read_dir(".")) or not sandbox.fs.read_text_file(
        "port.txt"
    ):
        time.sleep(0.1)
    return str(sandbox.expose_http(port=8080))


async def _download(url: str, tls: ssl.SSLContext) -> float:
    async with ClientSession(connector=TCPConnector(ssl=tls)) as session:
        began = time.monotonic()
        async with session.get(f"{url}/big?{SIZE}") as answer:
            size = 0
            async for piece in answer.content.iter_any():
                size += len(piece)
        assert size == SIZE, size
        return SIZE / 1e6 / (time.monotonic() - began)


async def _requests(url: str, tls: ssl.SSLContext) -> float:
    async with ClientSession(connector=TCPConnector(ssl=tls, limit=0)) as session:

        async def visitor() -> int:
            count = 0
            while time.monotonic() < until:
                async with session.get(f"{url}/") as answer:
                    assert answer.status == 200
                    await answer.read()
                count += 1
            return count

        until = time.monotonic() + SECONDS
        return sum(await asyncio.gather(*(visitor() for _ in range(VISITORS)))) / SECONDS


_ASK = """
import http.client, threading, time
def visit():
    c = http.client.HTTPConnection('127.0.0.1', 8080)
    while time.monotonic() < until:
        c.request('GET', '/'); c.getresponse().read(); counts.append(1)
counts, until = [], time.monotonic() + 3
threads = [threading.Thread(target=visit) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
print(len(counts) / 3)
"""


def _inside(sandbox: Any) -> float:
    """Requests/s of a client inside the guest: what emulation leaves of the server."""
    process = sandbox.spawn("python3", args=["-c", _ASK], stdout="piped")
    return float(process.stdout.read())
