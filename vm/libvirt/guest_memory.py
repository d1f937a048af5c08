"""Reads and writes the physical memory of a domain that stands still, through QEMU's gdbstub. Every call blocks.

libvirt and QMP can read a guest's memory but not write it. The stub is there only for as long as it is used, at the end
of a pair of sockets that no third process can reach.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import libvirt
import libvirt_qemu  # type: ignore[import-untyped]

from vm.errors import HypervisorError
from vm.libvirt.connection import Connection
from vm.libvirt.errors import translated

_NAME = "atoll-memory"
_PATIENCE = 10.0  # seconds for an answer


class GuestMemory:
    """One conversation in GDB's remote serial protocol. Raises HypervisorError whenever the stub refuses."""

    def __init__(self, stub: socket.socket) -> None:
        self._stub = stub
        self._incoming = stub.makefile("rb")

    def read(self, address: int, count: int) -> bytes:
        """`count` bytes from that physical address on."""
        answer = self._ask(f"m{address:x},{count:x}")
        try:
            data = bytes.fromhex(answer)
        except ValueError:
            data = b""
        if len(data) != count:
            raise HypervisorError(f"the guest's memory cannot be read: {answer[:40]}")
        return data

    def write(self, address: int, data: bytes) -> None:
        """Put `data` at that physical address."""
        self._require_ok(f"M{address:x},{len(data):x}:{data.hex()}", "written")

    def use_physical_addresses(self) -> None:
        """Without it an address is one of whatever program the guest's processor was in."""
        self._require_ok("Qqemu.PhyMemMode:1", "addressed")

    def _require_ok(self, request: str, what: str) -> None:
        if (answer := self._ask(request)) != "OK":
            raise HypervisorError(f"the guest's memory cannot be {what}: {answer[:40]}")

    def _ask(self, request: str) -> str:
        body = request.encode()
        try:
            self._stub.sendall(b"$%s#%02x" % (body, sum(body) % 256))
            while (mark := self._incoming.read(1)) == b"+":
                pass
            if mark != b"$":
                raise HypervisorError("QEMU's gdbstub does not answer")
            answer = bytearray()
            while (byte := self._incoming.read(1)) != b"#":
                if not byte:
                    raise HypervisorError("QEMU's gdbstub hung up")
                answer += byte
            self._incoming.read(2)  # a checksum, over a socket that loses nothing
            self._stub.sendall(b"+")
        except OSError as error:
            raise HypervisorError(f"QEMU's gdbstub does not answer ({error})") from error
        return answer.decode(errors="replace")


@contextmanager
def guest_memory(conn: Connection, name: str) -> Iterator[GuestMemory]:
    """The memory of the domain, which must be paused. HypervisorError, MachineGone."""
    mine, stub = socket.socketpair()
    with mine, translated():
        domain = conn.raw.lookupByName(name)
        with stub:
            _command(domain, "getfd", {"fdname": _NAME}, stub)
        address = {"type": "fd", "data": {"str": _NAME}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        _command(domain, "chardev-add", {"id": _NAME, "backend": backend})
        _stub(domain, f"chardev:{_NAME}")
        try:
            mine.settimeout(_PATIENCE)
            memory = GuestMemory(mine)
            memory.use_physical_addresses()
            # Hung up without a word: a debugger that says goodbye has the processor run
            yield memory
        finally:
            _stub(domain, "none")


def _command(domain: libvirt.virDomain, name: str, arguments: Mapping[str, object], *files: socket.socket) -> None:
    command = json.dumps({"execute": name, "arguments": arguments})
    said, _ = libvirt_qemu.qemuMonitorCommandWithFiles(domain, command, [file.fileno() for file in files])
    if "error" in (answer := json.loads(said)):
        raise HypervisorError(f"QEMU refuses {name}: {str(answer['error'].get('desc'))[:200]}")


def _stub(domain: libvirt.virDomain, device: str) -> None:
    said = libvirt_qemu.qemuMonitorCommand(
        domain, f"gdbserver {device}", libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
    )
    if "could not" in said.lower():
        raise HypervisorError(f"QEMU refuses its gdbstub: {said.strip()[:200]}")
