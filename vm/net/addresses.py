"""Which addresses are the host's own, as its kernel sees it now."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from pyroute2 import IPRoute


def is_own(address: IPv4Address | IPv6Address) -> bool:
    """Whether a packet to this address would stay on this host."""
    if _may_bind_anything(address.version):
        with IPRoute() as links:
            return str(address) in [one.get("IFA_ADDRESS") for one in links.get_addr()]
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True


def _may_bind_anything(version: int) -> bool:
    try:
        text = Path(f"/proc/sys/net/ipv{version}/ip_nonlocal_bind").read_text()
    except OSError:
        return False
    return text.strip() != "0"
