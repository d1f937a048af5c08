"""Restores a guest's memory image under bare QEMU: the reference for every number about clones and resumes.

The image is of the same guest image, booted and warmed as a template is, and restored with the same devices; there is
no libvirt, node or namespace around it. `python -m bench.bare_restore` prints the seconds to the first command's end.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.bare_boot import BareGuest, CallFailed, booted, connected, qemu_argv
from vm.image.build import DEFAULT_CACHE, image_path


class _Monitor:
    """QEMU's own protocol, a command at a time."""

    def __init__(self, path: Path, *, timeout: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("r")
        self._lines.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            said = json.loads(self._lines.readline())
            if "error" in said:
                raise CallFailed(f"{command}: {said['error']}")
            if "return" in said:
                return said["return"]

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@contextmanager
def saved(image: Path, *, memory_mib: int, vcpus: int) -> Iterator[tuple[Path, Path]]:
    """A warmed guest's memory image and its disk, in memory; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="atoll-bare-", dir="/dev/shm") as work:
        memory, monitor, disk = Path(work) / "memory", Path(work) / "qmp", Path(work) / "disk.qcow2"
        extra = ("-qmp", f"unix:{monitor},server=on,wait=off")
        with booted(image, memory_mib=memory_mib, vcpus=vcpus, extra=extra, disk=disk) as (guest, _took, _pid):
            for _ in range(3):
                run_true(guest)
            time.sleep(1)
            qmp = _Monitor(monitor, timeout=60)
            qmp.execute("stop")
            qmp.execute("migrate-set-parameters", **{"max-bandwidth": 2**40})
            qmp.execute("migrate", uri=f"exec:cat > {memory}")
            while (status := qmp.execute("query-migrate")["status"]) != "completed":
                if status == "failed":
                    raise CallFailed("QEMU could not write its memory")
                time.sleep(0.02)
            qmp.close()
        yield memory, disk


def run_true(guest: BareGuest) -> None:
    """Run a command to its end."""
    pid = guest.call("spawn", command="true", stdin="null", stdout="null", stderr="null")[0]["pid"]
    guest.call("processWait", pid=pid)


def restored(image: Path, memory: Path, disk: Path, *, memory_mib: int, vcpus: int, timeout: float = 60) -> float:
    """Seconds from starting QEMU on that memory until `true` has run in the guest."""
    with tempfile.TemporaryDirectory(prefix="atoll-bare-") as work:
        overlay, channel, monitor = Path(work) / "disk.qcow2", Path(work) / "channel", Path(work) / "qmp"
        backing = f"backing_file={disk},backing_fmt=qcow2"
        create = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", backing, str(overlay)]
        if subprocess.call(create) != 0:
            raise CallFailed("qemu-img could not make the disk")
        began = time.monotonic()
        fd = os.open(memory, os.O_RDONLY)
        argv = [
            *qemu_argv(image, disk=overlay, channel=channel, memory_mib=memory_mib, vcpus=vcpus),
            *("-qmp", f"unix:{monitor},server=on,wait=off", "-incoming", f"fd:{fd}"),
        ]
        process = subprocess.Popen(argv, pass_fds=[fd])
        try:
            os.close(fd)
            connection = connected(channel, process, timeout)
            qmp = _Monitor(monitor, timeout=timeout)
            while qmp.execute("query-status")["status"] == "inmigrate":
                time.sleep(0.005)
            qmp.execute("cont")
            guest = BareGuest(connection, timeout=timeout)
            run_true(guest)
            took = time.monotonic() - began
            qmp.close()
            connection.close()
            return took
        finally:
            process.kill()
            process.wait()


def main() -> None:
    """Print five restores' seconds and their median."""
    image = image_path(DEFAULT_CACHE)
    if image is None:
        raise SystemExit("the image is not built: python -m vm.image.build")
    with saved(image, memory_mib=1280, vcpus=2) as (memory, disk):
        print(f"memory image: {memory.stat().st_size / 1e6:.0f} MB")
        seconds = [restored(image, memory, disk, memory_mib=1280, vcpus=2) for _ in range(5)]
    print("bare QEMU restore to first command:", " ".join(f"{took:.2f}" for took in seconds), "s")
    print(f"median {statistics.median(seconds):.2f} s")


if __name__ == "__main__":
    main()
