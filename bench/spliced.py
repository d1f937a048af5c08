"""What passes the gate untouched, beside HAProxy and beside no proxy at all, in turns.

Both proxies have one thread on the same core, client and server the others: so it is the proxy that is the bottleneck,
where there is more than one core.
"""

from __future__ import annotations

import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.report import Number, median, quantile
from bench.spliced_server import ANSWER, REQUEST, SIZE
from tests.installation import CHECKOUT

RUNS = 5
CONNECTIONS = 16
SECONDS = 2.0  # of each run of requests
PINGS = 1500
NEW = 200  # connections that are made one after the other
_CONFIGURATION = """\
global
    nbthread 1
    maxconn 4096
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen spliced
    bind 127.0.0.1:{port}
    server upstream 127.0.0.1:{upstream}
"""


def spliced() -> list[Number]:
    """Requests and bytes a second, new connections a second, and the latency that is added."""
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="atoll-bench-") as place:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[1:] or cores)
        stack.callback(os.sched_setaffinity, 0, cores)
        (upstream,) = stack.enter_context(program(None, "bench.spliced_server"))
        (gate,) = stack.enter_context(program(cores[0], "bench.spliced_gate", str(upstream)))
        haproxy = stack.enter_context(_haproxy(Path(place), cores[0], upstream))
        ways = {"gate": gate, "HAProxy": haproxy, "direct": upstream}
        requests: dict[str, list[float]] = {way: [] for way in ways}
        speeds: dict[str, list[float]] = {way: [] for way in ways}
        latencies: dict[str, list[float]] = {way: [] for way in ways}
        new: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(RUNS):
            for way, port in ways.items():
                requests[way].append(_requests(port))
                speeds[way].append(download(port) / 1e6)
                latencies[way].append(_latency(port) * 1000)
                new[way].append(_connections(port))
    direct = median(latencies["direct"])
    beside = f"HAProxy adds {median(latencies['HAProxy']) - direct:.3f} ms"
    return [
        _number("requests, spliced", requests, "per second", at_least=0.5),
        _number("bytes, spliced", speeds, "MB/s", at_least=0.8),
        Number("latency that the gate adds, p50", median(latencies["gate"]) - direct, "ms", at_most=1, note=beside),
        _number("new connections, one after the other", new, "per second"),
    ]


def _number(name: str, values: dict[str, list[float]], unit: str, at_least: float | None = None) -> Number:
    note = f"direct: {median(values['direct']):.4g} {unit}"
    return Number(
        name, median(values["gate"]), unit, median(values["HAProxy"]), "HAProxy", at_least=at_least, note=note
    )


@contextmanager
def program(core: int | None, module: str, *arguments: str, lines: int = 1) -> Iterator[list[int]]:
    """A program of this benchmark on that core (None: on ours), and the numbers that it prints first, one a line."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    )
    try:
        if core is not None:
            os.sched_setaffinity(process.pid, {core})
        assert process.stdout is not None
        yield [int(process.stdout.readline()) for _ in range(lines)]
    finally:
        process.kill()
        process.wait()


@contextmanager
def _haproxy(place: Path, core: int, upstream: int) -> Iterator[int]:
    program = shutil.which("haproxy", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if program is None:
        raise FileNotFoundError("haproxy is not installed: make bench installs it")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    configuration = place / "haproxy.cfg"
    configuration.write_text(_CONFIGURATION.format(port=port, upstream=upstream))
    process = subprocess.Popen([program, "-db", "-q", "-f", str(configuration)])
    try:
        os.sched_setaffinity(process.pid, {core})
        until = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)
            else:
                break
        yield port
    finally:
        process.terminate()
        process.wait()


def _connected(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _requests(port: int) -> float:
    """Requests a second on connections that are kept, each of which asks again as soon as it is answered."""
    asked, done = bytes(REQUEST), 0
    selector = selectors.EpollSelector()
    left: dict[int, int] = {}
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            sock = stack.enter_context(_connected(port))
            selector.register(sock, selectors.EVENT_READ, sock)
            left[sock.fileno()] = ANSWER
            sock.sendall(asked)
        began = time.perf_counter()
        while (took := time.perf_counter() - began) < SECONDS:
            for key, _events in selector.select():
                sock = key.data
                left[key.fd] -= len(sock.recv(ANSWER))
                if not left[key.fd]:
                    left[key.fd] = ANSWER
                    done += 1
                    sock.sendall(asked)
        selector.close()
    return done / took


def download(port: int) -> float:
    """Bytes a second of one download."""
    with _connected(port) as sock:
        room = bytearray(2**18)
        began = time.perf_counter()
        sock.sendall(b"B" + bytes(REQUEST - 1))
        got = 0
        while got < SIZE:
            got += sock.recv_into(room)
        return SIZE / (time.perf_counter() - began)


def _latency(port: int) -> float:
    taken = []
    with _connected(port) as sock:
        for _ in range(PINGS):
            began = time.perf_counter()
            sock.sendall(bytes(REQUEST))
            sock.recv(ANSWER, socket.MSG_WAITALL)
            taken.append(time.perf_counter() - began)
    return quantile(taken, 0.5)


def _connections(port: int) -> float:
    began = time.perf_counter()
    for _ in range(NEW):
        with _connected(port) as sock:
            sock.sendall(bytes(REQUEST))
            sock.recv(ANSWER, socket.MSG_WAITALL)
    return NEW / (time.perf_counter() - began)
