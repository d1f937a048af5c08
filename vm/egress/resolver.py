"""The resolver of one machine: every well-formed name has a virtual address of its own, and nobody is asked.

So a connection to a virtual address names exactly one host, and looking a name up tells nobody outside anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from vm.egress import dns
from vm.egress.hostnames import fold

VIRTUAL = IPv4Network("100.64.0.0/10")
MAX_NAMES = 4096
_FIRST = int(VIRTUAL.network_address) + 2**16  # any would do; these are easily told from a real network's gateway
_LOCAL = IPv4Address("127.0.0.1")


class NoMoreNames(Exception):
    """This machine has looked up as many names as it may."""


class VirtualNames:
    """Names and their addresses, of one machine for all its life: none is ever given to a second name.

    `learned` is told each new name before its address is known to anybody.
    """

    def __init__(self, names: Iterable[str] = (), learned: Callable[[str], None] = lambda name: None) -> None:
        self._names: list[str] = []
        self._places: dict[str, int] = {}
        self._learned = learned
        for name in names:
            self._add(name)

    def address_of(self, name: str) -> IPv4Address:
        """The address of a folded name, a new one where it has none. NoMoreNames, OSError."""
        place = self._places.get(name)
        if place is None:
            if len(self._names) >= MAX_NAMES:
                raise NoMoreNames
            self._learned(name)
            place = self._add(name)
        return IPv4Address(_FIRST + place)

    def name_of(self, address: IPv4Address) -> str | None:
        """The name that an address stands for; None if it was never given out."""
        place = int(address) - _FIRST
        return self._names[place] if 0 <= place < len(self._names) else None

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def _add(self, name: str) -> int:
        place = self._places[name] = len(self._names)
        self._names.append(name)
        return place


def respond(
    message: bytes, names: VirtualNames, known_single: Callable[[str], bool] = lambda name: False
) -> bytes | None:
    """The answer to a guest's message; None where there is none to give.

    `known_single` says which names of a single label mean something, since the administrator opened them.
    """
    try:
        query = dns.query_read(message)
    except dns.Malformed:
        return dns.reply_to(message)
    if query.opcode != 0 or query.group != dns.IN:
        return dns.answer(query, dns.NOTIMP)
    try:
        name = fold(b".".join(query.labels).decode("ascii"))
    except ValueError:
        return dns.answer(query, dns.NXDOMAIN)
    local = name == "localhost" or name.endswith(".localhost")
    if "." not in name and not local and not known_single(name):
        return dns.answer(query, dns.NXDOMAIN)
    if query.kind != dns.A:
        return dns.answer(query)
    try:
        return dns.answer(query, addresses=[_LOCAL if local else names.address_of(name)])
    except (NoMoreNames, OSError):
        return dns.answer(query, dns.SERVFAIL)


class NamesFile:
    """A machine's names on disk, appended one by one: what a guest was told outlives the node."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> VirtualNames:
        """The names so far; whatever is learned from now on is written before it is told."""
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            text = b""
        whole, _, cut = text.rpartition(b"\n")
        if cut:  # the host died in the middle of a line, of which no guest was told
            os.truncate(self._path, len(text) - len(cut))
        return VirtualNames(whole.decode("ascii").split("\n") if whole else (), self._append)

    def _append(self, name: str) -> None:
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(file, f"{name}\n".encode("ascii"))
        finally:
            os.close(file)
