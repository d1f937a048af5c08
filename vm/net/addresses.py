"""Which addresses are the host's own, as its kernel sees it now. Read from /proc: the callers are in an event loop."""

from __future__ import annotations

import re
import socket
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

_LOCAL = re.compile(r"\|-- ([0-9.]+)\n\s+/32 host LOCAL")


def own_addresses() -> list[str]:
    """This host's IPv4 addresses that others may know, which loopback is not."""
    found = dict.fromkeys(_LOCAL.findall(Path("/proc/net/fib_trie").read_text()))
    return [address for address in found if not IPv4Address(address).is_loopback]


def own_addresses6() -> list[str]:
    """This host's IPv6 addresses but for loopback: none where it has no IPv6."""
    found = [IPv6Address(bytes.fromhex(line.split()[0])) for line in _lines("/proc/net/if_inet6")]
    return [str(address) for address in dict.fromkeys(found) if not address.is_loopback]


def is_own(address: IPv4Address | IPv6Address) -> bool:
    """Whether a packet to this address would stay on this host."""
    if _may_bind_anything(address.version):
        if address.version == 4:
            return address.is_loopback or str(address) in own_addresses()
        return address.is_loopback or str(address) in own_addresses6()
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except FileNotFoundError:  # a host without IPv6
        return []


def _may_bind_anything(version: int) -> bool:
    text = _lines(f"/proc/sys/net/ipv{version}/ip_nonlocal_bind")
    return bool(text) and text[0].strip() != "0"
