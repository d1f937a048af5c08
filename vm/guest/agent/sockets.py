"""Who listens on which TCP port of this machine, by what the kernel shows in /proc."""

from __future__ import annotations

import os
import socket
import struct

CARD = "10.0.0.2"
"""The address of the machine's card, the same in every machine."""
_LISTEN = b"0A"
_MOST = 512


def listening() -> list[dict[str, object]]:
    """Each port that is listened on, once: `{"port", "address", "pid", "command"}`, in the order of ports.

    `pid` and `command` are None where the process is somebody else's or has just ended.
    """
    found: dict[int, tuple[str, int]] = {}
    for port, address, inode in _sockets():
        # A server that listens on several addresses is shown with the widest of them
        if port not in found or address in ("0.0.0.0", "::"):  # noqa: S104
            found[port] = (address, inode)
    owners = _owners({inode for _, inode in found.values()})
    return [
        {"port": port, "address": address, "pid": owners.get(inode), "command": _command(owners.get(inode))}
        for port, (address, inode) in sorted(found.items())[:_MOST]
    ]


def ports_of(pid: int) -> list[int]:
    """The ports that a process, or one that it started, listens on; the process's own first, lowest first."""
    by_inode = {inode: port for port, _, inode in _sockets()}
    ports: list[int] = []
    family = [pid]
    for member in family:
        own = {by_inode[inode] for inode in _inodes(member) if inode in by_inode}
        ports += sorted(own - set(ports))
        if len(family) < _MOST:
            family += _children(member)
    return ports


def _sockets() -> list[tuple[int, str, int]]:
    """(port, address, inode) of every listening socket."""
    found = []
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        try:
            with open(f"/proc/net/{name}", "rb") as file:
                lines = file.read().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            # sl local_address rem_address st ... uid timeout inode
            fields = line.split()
            if fields[3] == _LISTEN:
                packed, _, port = fields[1].partition(b":")
                found.append((int(port, 16), _address(packed, family), int(fields[9])))
    return found


def _address(text: bytes, family: int) -> str:
    # Words of four bytes in the processor's order
    raw = bytes.fromhex(text.decode())
    words = struct.unpack(f">{len(raw) // 4}I", raw)
    return socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words))


def _owners(wanted: set[int]) -> dict[int, int]:
    owners: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal() and len(owners) < len(wanted):
            for inode in _inodes(int(name)):
                if inode in wanted:
                    # The parent's number where a server has forked: it was there first
                    owners[inode] = min(owners.get(inode, int(name)), int(name))
    return owners


def _inodes(pid: int) -> list[int]:
    """The sockets that a process has open; none of one that may not be looked into."""
    folder = f"/proc/{pid}/fd"
    found = []
    try:
        for name in os.listdir(folder):
            try:
                target = os.readlink(f"{folder}/{name}")
            except OSError:
                continue  # closed meanwhile
            if target.startswith("socket:["):
                found.append(int(target[8:-1]))
    except OSError:
        pass
    return found


def _children(pid: int) -> list[int]:
    found = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += [int(child) for child in file.read().split()]
    except OSError:
        pass  # it has ended
    return found


def _command(pid: int | None) -> str | None:
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip()
    except OSError:
        return None
