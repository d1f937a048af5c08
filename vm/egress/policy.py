"""What a machine may reach: patterns of hosts, and the decision about one destination. Pure.

Address rules match the address that is dialled. A name is decided by name rules before anybody looks it up; only where
an IPv6 pattern could allow it (guests have IPv4 only, so it can match nothing else) must it be looked up first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from vm.egress.hostnames import fold

type Address = IPv4Address | IPv6Address
type Network = IPv4Network | IPv6Network
type Host = str | Address
"""A folded name, or an address."""

MAX_RULES = 1000
"""Patterns of one list, as people write it."""
_MAX_PATTERN = 512


@dataclass(frozen=True, slots=True)
class Rule:
    """One pattern. Either `network` or `name` is set; `port` None matches every port."""

    text: str
    port: int | None = None
    name: str = ""
    below: bool = False  # subdomains of `name`, not `name` itself
    network: Network | None = None

    def matches(self, host: Host, port: int) -> bool:
        """Whether this destination is meant."""
        if self.port is not None and self.port != port:
            return False
        if isinstance(host, str):
            return bool(self.name) and (host.endswith(f".{self.name}") if self.below else host == self.name)
        return self.network is not None and host.version == self.network.version and host in self.network


@dataclass(frozen=True, slots=True)
class Decision:
    """`rule` is the text of the pattern that decided, or a word for what did; `sentence` is for people.

    `open`: denied as yet, but an address that the name resolves to may be allowed. `ask`: no rule is about it, and
    somebody wants to be asked.
    """

    allowed: bool
    rule: str
    sentence: str
    open: bool = False
    ask: bool = False


class Policy:
    """Allow rules (None: every public host) and deny rules, which go before them; `ask` about what neither names."""

    def __init__(self, allow: Sequence[str] | None = None, deny: Sequence[str] = (), ask: bool = False) -> None:
        """ValueError names the pattern and what is wrong with it. `deny` may be two lists: an organization's, too."""
        self.allow = None if allow is None else parse_all(allow)
        self.deny = parse_all(deny, 2 * MAX_RULES)
        self.ask = ask

    def judge(self, host: Host, port: int, address: Address | None = None) -> Decision:
        """The decision about a destination; once more with each `address` that a name resolved to."""
        said = f"{_spell(host)}:{port}"
        found: list[Host] = [plain(host)] if not isinstance(host, str) else [host]
        if address is not None:
            found.append(plain(address))
        for rule in self.deny:
            if any(rule.matches(one, port) for one in found):
                return Decision(False, rule.text, f"{said} is denied by the rule {rule.text}.")
        if self.allow is None:
            return Decision(True, "all public hosts", f"{said} is allowed, as all public hosts are.")
        for rule in self.allow:
            if rule.matches(found[0], port) or (_only_upstream(rule) and rule.matches(found[-1], port)):
                return Decision(True, rule.text, f"{said} is allowed by {rule.text}.")
        if not self.allow:
            return Decision(False, "allow_net", f"{said} is denied: this sandbox may reach nothing.", ask=self.ask)
        still_open = (
            isinstance(host, str)
            and address is None
            and any(_only_upstream(rule) and rule.port in (None, port) for rule in self.allow)
        )
        said = f"{said} is not on this sandbox's list of allowed hosts."
        return Decision(False, "allow_net", said, still_open, ask=self.ask and not still_open)


def parse_all(patterns: Sequence[str], most: int = MAX_RULES) -> tuple[Rule, ...]:
    """Rules from patterns. ValueError."""
    if isinstance(patterns, str) or len(patterns) > most:
        raise ValueError(f"a list of at most {most} patterns is expected")
    return tuple(parse(pattern) for pattern in patterns)


def parse(pattern: str) -> Rule:
    """One rule from its text. ValueError names the pattern and what is wrong with it."""
    try:
        if not isinstance(pattern, str):
            raise ValueError("it is not text")
        return _parse(pattern)
    except ValueError as error:
        raise ValueError(f"{str(pattern)[:100]!r}: {error}") from error


def plain(address: Address) -> Address:
    """An IPv4 address where IPv6 only wraps one, since it is that one which would be reached."""
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def _parse(text: str) -> Rule:
    if not text or len(text) > _MAX_PATTERN or text != text.strip():
        raise ValueError("a pattern is a host name or an address, without spaces around it")
    if "://" in text:
        raise ValueError("a host is expected, not a URL")
    if text.startswith("["):
        inside, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("an IPv6 address is written [address] or [address]:port")
        return Rule(text, port=_port(rest[1:]) if rest else None, network=_network(inside, 6))
    if text.count(":") > 1:
        if "/" in text:
            return Rule(text, network=_network(text, 6))
        raise ValueError("an IPv6 address is written in brackets: [address] or [address]:port")
    host, colon, digits = text.partition(":")
    port = _port(digits) if colon else None
    if "/" in host or host.replace(".", "").isdecimal():
        return Rule(text, port=port, network=_network(host, 4))
    below = host.startswith("*.")
    name = host[2:] if below else host
    if "*" in name:
        raise ValueError("a star stands only at the beginning, as in *.example.com")
    return Rule(text, port=port, name=fold(name), below=below)


def _network(text: str, version: int) -> Network:
    if "%" in text or not text.isascii():
        raise ValueError("an address without a zone is expected")
    if "/" in text:
        network = ip_network(text)
    else:
        network = ip_network(plain(ip_address(text)))
        version = network.version if version == 6 else 4
    if network.version != version:
        raise ValueError(f"not an IPv{version} address")
    return network


def _port(digits: str) -> int:
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 5 and 1 <= int(digits) <= 65_535):
        raise ValueError("a port is a number from 1 to 65535")
    return int(digits)


def _only_upstream(rule: Rule) -> bool:
    return rule.network is not None and rule.network.version == 6


def _spell(host: Host) -> str:
    return f"[{host}]" if isinstance(host, IPv6Address) else str(host)
