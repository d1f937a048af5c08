"""Throughput of the guest channel, on the product's own way, beside a raw copy over a virtio-serial port.

Ours is what the front doors use: a client of the node, its socket, the node process, the channel, the agent. The raw
copy is made by a Python peer in a machine of the same image and size under bare QEMU, in turns with ours.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import tempfile
import threading
import time
from pathlib import Path

from bench.bare_boot import BareGuest, booted
from bench.report import Number, median
from tests.live.nodes import NodeProcess, boot
from vm.api import Node
from vm.guest.calls import GuestCall

RUNS = 5
MEMORY, VCPUS = 1280, 2  # as a sandbox has
SIZE = 64 * 2**20
CHUNK = 65_536

# The raw peer: the simplest Python program that makes the same copy through such a port
_PORT = """
import os, glob
port = [p for p in glob.glob('/sys/class/virtio-ports/*') if open(p + '/name').read().strip() == 'bench.raw'][0]
fd = os.open('/dev/' + os.path.basename(port), os.O_RDWR)
"""
_OUT = (
    _PORT
    + """
file = os.open('/dev/shm/bench', os.O_RDONLY)
while data := os.read(file, {chunk}):
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left):]
"""
)
_IN = (
    _PORT
    + """
file = os.open('/dev/null', os.O_WRONLY)
os.write(fd, b'r')
left = {size}
while left:
    left -= os.write(file, os.read(fd, {chunk}))
os.write(fd, b'k')
"""
)
# What the port moves where nobody has to read a file: the reference's own ceiling
_BLANK = (
    _PORT
    + """
block, left = bytes({chunk}), {size}
while left:
    left -= os.write(fd, block[:left])
"""
)


def channel(image: Path) -> list[Number]:
    """MB/s of a file through node and agent, each way, beside the same copy through a raw port."""
    process = NodeProcess(image=image.name)
    process.start()
    try:
        return _beside(image, process.client)
    finally:
        process.close()


def _beside(image: Path, node: Node) -> list[Number]:
    machine = secrets.token_hex(16)
    asyncio.run(boot(node, machine, memory_mib=MEMORY, vcpus=VCPUS))
    asyncio.run(_write(node, machine, "/dev/shm/bench"))
    with tempfile.TemporaryDirectory(prefix="atoll-bench-") as work:
        path = Path(work) / "raw"
        extra = [
            *("-chardev", f"socket,id=raw,path={path},server=on,wait=off"),
            *("-device", "virtserialport,chardev=raw,name=bench.raw"),
        ]
        with (
            booted(image, memory_mib=MEMORY, vcpus=VCPUS, extra=extra) as (guest, _took, _pid),
            socket.socket(socket.AF_UNIX) as raw,
        ):
            raw.connect(str(path))
            raw.settimeout(120)
            raw_out, raw_in, ours_out, ours_in, blank = [], [], [], [], []
            # The raw peer's file
            guest.call("writeFile", bytes(SIZE), path="/dev/shm/bench", options={})
            for _ in range(RUNS):
                raw_out.append(_peer(guest, _OUT, lambda: _receive(raw)))
                ours_out.append(asyncio.run(_read(node, machine, "/dev/shm/bench")))
                blank.append(_peer(guest, _BLANK, lambda: _receive(raw)))
                raw_in.append(_peer(guest, _IN, lambda: _send(raw)))
                ours_in.append(asyncio.run(_write(node, machine, "/dev/null")))
    megabytes = SIZE / 1e6
    ceiling = f"a raw port fed from memory: {megabytes / median(blank):.0f} MB/s"
    return [
        Number(
            f"channel, {way}",
            megabytes / median(ours),
            "MB/s",
            megabytes / median(bare),
            "raw port",
            at_least=0.6,
            note=note,
        )
        for way, ours, bare, note in (
            ("out of the guest", ours_out, raw_out, ceiling),
            ("into the guest", ours_in, raw_in, ""),
        )
    ]


async def _read(node: Node, machine: str, path: str) -> float:
    """Seconds of the whole call."""
    began = time.monotonic()
    async with await GuestCall.begin(await node.stream_open(machine), "readFile", {"path": path}) as reading:
        assert (await reading.reply())["ok"] == {"size": SIZE}
        left = SIZE
        while data := await reading.read(CHUNK):
            left -= len(data)
    assert left == 0, left
    return time.monotonic() - began


async def _write(node: Node, machine: str, path: str) -> float:
    """Seconds of the whole call."""
    began = time.monotonic()
    stream = await node.stream_open(machine)
    async with await GuestCall.begin(stream, "writeFile", {"path": path, "options": {}}, more=True) as writing:
        block = bytes(CHUNK)
        for _ in range(SIZE // CHUNK):
            await writing.write(block)
        await writing.end_input()
        assert "ok" in await writing.reply()
    return time.monotonic() - began


def _receive(raw: socket.socket) -> float:
    """Seconds from the first byte to the last: the peer's own start does not count."""
    left = SIZE - len(raw.recv(CHUNK))
    began = time.monotonic()
    while left:
        left -= len(raw.recv(2**20))
    return time.monotonic() - began


def _send(raw: socket.socket) -> float:
    assert raw.recv(1) == b"r"
    began = time.monotonic()
    raw.sendall(bytes(SIZE))
    assert raw.recv(1) == b"k"
    return time.monotonic() - began


def _peer(guest: BareGuest, program: str, act: object) -> float:
    """Run the peer as root in the guest and the host's side here; seconds of the copy."""
    assert callable(act)
    answer: list[float] = []
    thread = threading.Thread(target=lambda: answer.append(act()))
    thread.start()
    script = program.format(size=SIZE, chunk=CHUNK)
    words = ["python3", "-c", script]
    pid = guest.call("spawn", command="sudo", args=words, stdin="null", stdout="null", stderr="null")[0]["pid"]
    code = guest.call("processWait", pid=pid)[0]["code"]
    thread.join(timeout=120)
    assert code == 0, f"the raw peer ended with {code}"
    return answer[0]
