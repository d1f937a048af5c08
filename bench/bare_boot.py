"""Boots a guest image under bare QEMU, without libvirt, node or namespace: the reference for every number about boots.

`python -m bench.bare_boot [IMAGE]` prints the seconds from starting QEMU to the agent's first answer, and their median.
"""

from __future__ import annotations

import argparse
import json
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from vm.guest.frames import MAX_PAYLOAD, Data, EchoScanner, Ended, Multiplexer, Reset, preamble
from vm.host import kvm
from vm.image.build import DEFAULT_CACHE
from vm.image.hashes import image_path


class CallFailed(Exception):
    """The guest gave the call up, or did not answer in time."""


class BareGuest:
    """A blocking client of the agent, one call at a time: as little between the measurement and the guest as can be."""

    def __init__(self, connection: socket.socket, *, timeout: float) -> None:
        self._connection = connection
        connection.settimeout(timeout)
        nonce = secrets.token_bytes(16)
        connection.sendall(preamble(nonce))
        scanner = EchoScanner(nonce)
        rest = None
        while rest is None:
            rest = scanner.feed(self._receive())
        self._mux = Multiplexer(host=True)
        self._pending = self._mux.receive(rest)

    def _receive(self) -> bytes:
        data = self._connection.recv(1_048_576)
        if not data:
            raise CallFailed("the guest closed its channel")
        return data

    def call(self, method: str, data: bytes = b"", **params: Any) -> tuple[Any, bytes]:
        """The reply and the output of one call with `data` as its input. CallFailed on an error reply, too."""
        number, opening = self._mux.open()
        request = json.dumps({"method": method, "params": params, "session": None}).encode()
        view = memoryview(len(request).to_bytes(4, "big") + request + data)
        self._connection.sendall(opening)
        output = bytearray()
        ended = False
        while True:
            batch = bytearray()
            while view and (room := self._mux.room(number)):
                piece = view[: min(room, MAX_PAYLOAD)]
                batch += self._mux.data(number, piece)
                view = view[len(piece) :]
            if not view and not ended:
                batch += self._mux.end(number)
                ended = True
            if batch:
                self._connection.sendall(batch)
            for event in self._pending or self._mux.receive(self._receive()):
                if isinstance(event, Data):
                    output += event.data
                    granted = self._mux.consumed(number, len(event.data))
                    if granted:
                        self._connection.sendall(granted)
                elif isinstance(event, Ended):
                    length = int.from_bytes(output[:4], "big")
                    reply = json.loads(bytes(output[4 : 4 + length]))
                    if "ok" not in reply:
                        raise CallFailed(f"{method}: {reply}")
                    return reply["ok"], bytes(output[4 + length :])
                elif isinstance(event, Reset):
                    raise CallFailed(f"{method}: {event.reason}")
            self._pending = []


def _argv(image: Path, *, disk: Path, channel: Path, memory_mib: int, vcpus: int) -> list[str]:
    """The bare QEMU that boots the image on that disk, its agent's port listening at `channel`."""
    manifest = json.loads((image / "manifest.json").read_text())
    return [
        "qemu-system-x86_64",
        *("-machine", "q35,usb=off,vmport=off,smbus=off,sata=off", "-nodefaults", "-no-user-config"),
        *_accelerator(image / manifest["kernel"]),
        *("-m", str(memory_mib), "-smp", str(vcpus)),
        *("-display", "none", "-no-reboot"),
        *("-kernel", str(image / manifest["kernel"]), "-initrd", str(image / manifest["initrd"])),
        *("-append", manifest["cmdline"]),
        *("-drive", f"file={disk},format=qcow2,if=none,id=root,cache=writeback"),
        *("-device", "virtio-blk-pci,drive=root", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=agent,path={channel},server=on,wait=off"),
        *("-device", "virtserialport,chardev=agent,name=atoll.agent"),
    ]


@contextmanager
def booted(
    image: Path,
    *,
    memory_mib: int = 1280,
    vcpus: int = 1,
    timeout: float = 60,
    extra: Sequence[str] = (),
) -> Iterator[tuple[BareGuest, float, int]]:
    """A freshly booted guest, the seconds until it answered its first ping, and QEMU's pid; gone afterwards."""
    manifest = json.loads((image / "manifest.json").read_text())
    with tempfile.TemporaryDirectory(prefix="atoll-bare-") as work:
        disk, channel = Path(work) / "disk.qcow2", Path(work) / "channel"
        backing = f"backing_file={image / manifest['root']},backing_fmt={manifest['root_format']}"
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", backing, str(disk)]
        if subprocess.call(create) != 0:
            raise CallFailed("qemu-img could not make the disk")
        began = time.monotonic()
        argv = _argv(image, disk=disk, channel=channel, memory_mib=memory_mib, vcpus=vcpus)
        process = subprocess.Popen([*argv, *extra])
        try:
            connection = connected(channel, process, timeout)
            guest = BareGuest(connection, timeout=timeout)
            guest.call("ping")
            yield guest, time.monotonic() - began, process.pid
            connection.close()
        finally:
            process.kill()
            process.wait()


@cache
def _accelerator(kernel: Path) -> tuple[str, ...]:
    """As the product chooses: the reference must not be slower than what it is compared with."""
    if kvm.probe(kernel).usable:
        return ("-accel", "kvm", "-cpu", "host")
    return ("-accel", "tcg,tb-size=128", "-cpu", "max")


def connected(channel: Path, process: subprocess.Popen[bytes], timeout: float) -> socket.socket:
    """A connection to its port once QEMU listens. CallFailed if it does not."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and process.poll() is None:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(channel))
        except OSError:
            connection.close()
            time.sleep(0.005)
        else:
            return connection
    raise CallFailed("QEMU ended or offered no channel")


def measure(image: Path, runs: int, *, memory_mib: int = 1280) -> list[float]:
    """Seconds to the first answer of that many boots, one after the other."""
    seconds = []
    for _ in range(runs):
        with booted(image, memory_mib=memory_mib) as (_guest, took, _pid):
            seconds.append(took)
    return seconds


def main() -> None:
    """Print the boots' seconds and their median."""
    parser = argparse.ArgumentParser(prog="python -m bench.bare_boot")
    parser.add_argument("image", nargs="?", type=Path, default=image_path(DEFAULT_CACHE))
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    if options.image is None:
        sys.exit("the image is not built: python -m vm.image.build")
    seconds = measure(options.image, options.runs)
    print("bare QEMU boot to first answer:", " ".join(f"{took:.2f}" for took in seconds), "s")
    print(f"median {statistics.median(seconds):.2f} s")


if __name__ == "__main__":
    main()
