"""Destinations that no machine reaches, whatever its policy says, unless the administrator has opened them. Pure.

Documentation ranges are not among them: registries of companies resolve there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from vm.egress.policy import Address, parse_all, plain

_NETWORKS = tuple(
    (ip_network(network), what)
    for network, what in (
        ("0.0.0.0/8", "this host"),
        ("127.0.0.0/8", "loopback"),
        ("10.0.0.0/8", "private"),
        ("172.16.0.0/12", "private"),
        ("192.168.0.0/16", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("169.254.0.0/16", "link-local"),
        ("192.0.0.0/24", "protocol assignments"),
        ("198.18.0.0/15", "benchmarking"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255/32", "broadcast"),
        ("240.0.0.0/4", "reserved"),
        ("168.63.129.16/32", "a cloud's metadata"),
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("fc00::/7", "unique local"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
        ("100::/64", "discard"),
    )
)
_TRANSLATED = (ip_network("64:ff9b::/96"), ip_network("64:ff9b:1::/48"), ip_network("::ffff:0:0:0/96"))
_COMPATIBLE = ip_network("::/96")
_METADATA_NAMES = frozenset(
    {"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"}
)


class Refusals:
    """Says what is always refused. `opened` are patterns as in a policy; `is_own` knows the host's own addresses."""

    def __init__(self, opened: Sequence[str] = (), is_own: Callable[[Address], bool] = lambda address: False) -> None:
        """ValueError if `opened` has a bad pattern."""
        self._opened = parse_all(opened)
        self._is_own = is_own

    def opens(self, name: str) -> bool:
        """Whether the administrator opened something by that name, on any port."""
        return any(rule.name == name and not rule.below for rule in self._opened)

    def of_name(self, name: str, port: int, *, listed: bool = True) -> str | None:
        """What a name stands for that is always refused; None if nothing. What was opened must be `listed` as well."""
        if listed and self._is_opened(name, port):
            return None
        if name in _METADATA_NAMES:
            return "a cloud's metadata"
        return "loopback" if name == "localhost" or name.endswith(".localhost") else None

    def of_address(self, address: Address, port: int, name: str = "", *, listed: bool = True) -> str | None:
        """What an address (that `name` resolved to) is, if it is always refused; None if it is not.

        `listed`: the sandbox has a list of what it may reach, without which nothing is open to it that was opened.
        """
        address = plain(address)
        if listed and (self._is_opened(address, port) or (name and self._is_opened(name, port))):
            return None
        for one in _meant(address):
            for network, what in _NETWORKS:
                if one.version == network.version and one in network:
                    return what
            if self._is_own(one):
                return "this host"
        return None

    def _is_opened(self, host: str | Address, port: int) -> bool:
        return any(rule.matches(host, port) for rule in self._opened)


def _meant(address: Address) -> Iterator[Address]:
    """The address, and the IPv4 addresses that are reached through it where a network translates."""
    yield address
    if not isinstance(address, IPv6Address):
        return
    value = int(address)
    if address in _COMPATIBLE and value > 1:
        yield IPv4Address(value)
    if any(address in network for network in _TRANSLATED):
        yield IPv4Address(value & 0xFFFF_FFFF)
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if (value >> 32) & 0xFDFF_FFFF == 0x0000_5EFE:  # ISATAP
        yield IPv4Address(value & 0xFFFF_FFFF)


def address_of(text: str) -> Address:
    """An address as the system spells it, without its zone. ValueError."""
    return ip_address(text.partition("%")[0])
