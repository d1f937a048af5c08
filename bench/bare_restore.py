"""Restores a template's memory image under bare QEMU: the reference for every number about clones.

It is the very image that the installation's clones are restored from, on the same devices, which libvirt translates
into QEMU's arguments; but there is no libvirt, node, namespace or identity around it when the time is taken.
"""

from __future__ import annotations

import json
import os
import pwd
import shlex
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.bare_boot import BareGuest, CallFailed, connected
from vm.host.provision import Users
from vm.libvirt import save_image, xml_build
from vm.libvirt.connection import QemuUser, open_embedded
from vm.storage.layout import Layout

# What libvirt wants to talk to QEMU by, and what belongs to its own files
_LIBVIRTS = ("masterKey0", "charmonitor")
# A card of the same kind whose tap nobody sets up; it goes with QEMU
_NOWHERE = f"tap,id=hostnet0,ifname=bare{os.getpid()},script=no,downscript=no,vnet_hdr=on"


class Monitor:
    """QEMU's own protocol, a command at a time."""

    def __init__(self, connection: socket.socket, *, timeout: float) -> None:
        self._socket = connection
        self._socket.settimeout(timeout)
        self._lines = self._socket.makefile("r")
        self._lines.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """What it returns. CallFailed with its error."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            said = json.loads(self._lines.readline())
            if "error" in said:
                raise CallFailed(f"{command}: {said['error']}")
            if "return" in said:
                return said["return"]

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._socket.close()


class BareTemplate:
    """A template of an installation, restored by QEMU alone. The installation stays as it is."""

    def __init__(self, data: Path, *, memory_mib: int) -> None:
        layout = Layout(data)
        found = [(path.parent, json.loads(path.read_text())) for path in layout.templates.glob("*/template.json")]
        place, template = next((p, t) for p, t in found if t["size"]["memory_mib"] == memory_mib)
        self._memory = place / "memory.save"
        self._disk = layout.disk(template["disk"])
        image = save_image.read(self._memory)
        self._stream_at = image.stream_at
        self._xml = image.xml
        user = pwd.getpwnam(Users().machine)
        self._work = tempfile.TemporaryDirectory(prefix="atoll-bare-")
        root = Path(self._work.name)
        root.chmod(0o755)
        self._conn = open_embedded(root, QemuUser(user.pw_name, user.pw_uid, user.pw_gid), lambda event: None)

    def close(self) -> None:
        """Let go of libvirt."""
        self._conn.close()
        self._work.cleanup()

    def restored(self, *, timeout: float = 60) -> float:
        """Seconds from starting QEMU on that memory until `true` has run in the guest."""
        with tempfile.TemporaryDirectory(prefix="atoll-bare-") as work:
            overlay, channel, monitor = Path(work) / "disk.qcow2", Path(work) / "channel", Path(work) / "qmp"
            backing = f"backing_file={self._disk},backing_fmt=qcow2"
            if subprocess.call(["qemu-img", "create", "-q", "-f", "qcow2", "-o", backing, str(overlay)]) != 0:
                raise CallFailed("qemu-img could not make the disk")
            argv = self._argv(overlay, channel)
            began = time.monotonic()
            with self._memory.open("rb") as memory:
                os.lseek(memory.fileno(), self._stream_at, os.SEEK_SET)
                argv += ["-qmp", f"unix:{monitor},server=on,wait=off", "-incoming", f"fd:{memory.fileno()}"]
                process = subprocess.Popen(argv, pass_fds=[memory.fileno()])
            try:
                connection = connected(channel, process, timeout)
                qmp = Monitor(connected(monitor, process, timeout), timeout=timeout)
                while qmp.execute("query-status")["status"] == "inmigrate":
                    time.sleep(0.005)
                qmp.execute("cont")
                guest = BareGuest(connection, timeout=timeout)
                pid = guest.call("spawn", command="true", stdin="null", stdout="null", stderr="null")[0]["pid"]
                guest.call("processWait", pid=pid)
                took = time.monotonic() - began
                qmp.close()
                connection.close()
                return took
            finally:
                process.kill()
                process.wait()

    def _argv(self, overlay: Path, channel: Path) -> list[str]:
        name, uuid = "bare", "00000000-0000-4000-8000-000000000001"
        place = xml_build.Place(name=name, uuid=uuid, disk=overlay, agent_socket=channel, tap="bare0")
        xml = xml_build.moved(self._xml, place)
        words = shlex.split(self._conn.raw.domainXMLToNative("qemu-argv", xml, 0))
        start = next(at for at, word in enumerate(words) if word.endswith("/qemu-system-x86_64"))
        return [words[start], *_without_libvirt(words[start + 1 :])]


def _without_libvirt(words: list[str]) -> Iterator[str]:
    """QEMU's arguments but for what only libvirt could answer, and with a network card that leads nowhere."""
    at = 0
    while at < len(words):
        option = words[at]
        value = words[at + 1] if at + 1 < len(words) and not words[at + 1].startswith("-") else None
        at += 1 if value is None else 2
        if value is not None and any(word in value for word in _LIBVIRTS):
            continue
        yield option
        if value is not None:
            yield _NOWHERE if option == "-netdev" else value


@contextmanager
def bare_template(data: Path, *, memory_mib: int) -> Iterator[BareTemplate]:
    """The template of that size of the installation on `data`."""
    template = BareTemplate(data, memory_mib=memory_mib)
    try:
        yield template
    finally:
        template.close()
