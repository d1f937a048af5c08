"""What sandboxes may reach and reached, as far as it can be said without a machine or a row. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from sandboxes.errors import Invalid
from vm.api import EgressPolicy
from vm.egress.policy import Policy, parse, parse_all

NOT_LISTED = "allow_net"
"""The rule of a denial because no pattern allows the host."""
ASKED = "ask"
"""The rule of what waits for somebody's answer."""
ALWAYS_REFUSED = "always refused"
NO_SERVER_NAME = "no SNI"
_UNLISTED = (NOT_LISTED, ASKED)
_FOLDED_FROM = 3
"""Hosts below one name, from which on a pattern of all of them is proposed to somebody who asks for that."""


def check_patterns(patterns: Sequence[str] | None, *, field: str) -> None:
    """Invalid names the pattern that is none, and what is wrong with it."""
    try:
        parse_all(patterns or ())
    except ValueError as error:
        raise Invalid(f"{field}: {error}", field=field) from error


def wrong_patterns(patterns: Sequence[str]) -> list[tuple[int, str]]:
    """The place of each pattern that is none, and what is wrong with it."""
    wrong = []
    for place, pattern in enumerate(patterns):
        try:
            parse(pattern)
        except ValueError as error:
            wrong.append((place, str(error)))
    return wrong


def policy_of(
    *, allow_net: Sequence[str] | None, deny_net: Sequence[str], organization_deny: Sequence[str], ask: bool = False
) -> EgressPolicy:
    """What holds for a machine: its organization's deny rules go before everything of its own."""
    denied = list(dict.fromkeys([*organization_deny, *deny_net]))
    return EgressPolicy(None if allow_net is None else list(allow_net), denied, ask)


def pattern_of(host: str, port: int) -> str:
    """The pattern that means this host and port only."""
    try:
        address = ip_address(host)
    except ValueError:
        return f"{host}:{port}"
    return f"[{host}]:{port}" if isinstance(address, IPv6Address) else f"{host}:{port}"


def remedy_of(
    *,
    host: str,
    port: int,
    rule: str,
    allow_net: Sequence[str] | None,
    deny_net: Sequence[str],
    organization: Sequence[str],
) -> str:
    """What would let a denied connection through by now: "allow" (a pattern more), "rule" or "organization_rule"

    (one less), "administrator", "done" (it would pass already), or nothing that anybody here can do.
    """
    if rule == ALWAYS_REFUSED:
        return "administrator"
    if rule in organization:
        return "organization_rule"
    if rule in deny_net:
        return "rule"
    if rule not in (*_UNLISTED, NO_SERVER_NAME) or allow_net is None:
        return "done" if rule in _UNLISTED else ""
    decided = Policy(allow_net, [*deny_net, *organization]).judge(ip_address(host) if _is_address(host) else host, port)
    if decided.allowed:
        return "done"
    if decided.rule != NOT_LISTED:
        return ""  # somebody has denied it since
    return "allow" if rule in _UNLISTED or _is_address(host) else ""


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Reached:
    """A host and port that a sandbox reached, how often, and how many bytes went to and fro."""

    host: str
    port: int
    connections: int
    bytes: int


def proposal(reached: Iterable[Reached], *, fold: bool) -> list[str]:
    """Patterns that allow what was reached, sorted by name; `fold`: several hosts of one domain as `*.domain`.

    A domain with as short a name as `co.uk` is never folded: it may be anybody's.
    """
    found = {(one.host, one.port) for one in reached}
    patterns: set[str] = set()
    if fold:
        below = Counter((parent, port) for host, port in found if (parent := _parent(host)))
        folded = {pair for pair, count in below.items() if count >= _FOLDED_FROM}
        patterns |= {f"*.{parent}:{port}" for parent, port in folded}
        found = {(host, port) for host, port in found if (_parent(host), port) not in folded}
    patterns |= {pattern_of(host, port) for host, port in found}
    return sorted(patterns, key=lambda pattern: (pattern.removeprefix("*.").split(":")[0].split(".")[::-1], pattern))


def _parent(host: str) -> str:
    if _is_address(host):
        return ""
    parent = host.partition(".")[2]
    labels = parent.split(".")
    shared = len(labels) == 2 and len(labels[1]) == 2 and len(labels[0]) <= 3
    return "" if len(labels) < 2 or shared else parent


_SAFE = re.compile(r"[^\x20-\x7e\xa0-\ud7ff\ue000-\uffff\U00010000-\U0010ffff]")


def shown(text: str, length: int) -> str:
    """A guest's text as it can be kept and shown: without control characters, which one database refuses."""
    return _SAFE.sub("\ufffd", text)[:length]
