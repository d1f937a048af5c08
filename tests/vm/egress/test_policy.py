"""A policy allows exactly what its patterns mean, in every spelling of a host."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vm.egress.hostnames import fold
from vm.egress.policy import Policy, parse
from vm.egress.refused import Refusals

LABEL = st.from_regex(r"[a-z]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
NAME = st.lists(LABEL, min_size=2, max_size=4).map(".".join)
PORT = st.integers(1, 65_535)


def _host(text: str) -> object:
    try:
        return ip_address(text)
    except ValueError:
        return fold(text)


@pytest.mark.parametrize(
    ("pattern", "host", "port", "meant"),
    [
        ("example.com", "example.com", 1, True),
        ("example.com", "EXAMPLE.com.", 443, True),
        ("Example.COM.", "example.com", 443, True),
        ("example.com", "a.example.com", 443, False),
        ("example.com", "example.com.evil.net", 443, False),
        ("example.com", "notexample.com", 443, False),
        ("example.com:443", "example.com", 443, True),
        ("example.com:443", "example.com", 80, False),
        ("*.example.com", "a.example.com", 443, True),
        ("*.example.com", "a.b.example.com", 443, True),
        ("*.example.com", "example.com", 443, False),
        ("*.example.com", "aexample.com", 443, False),
        ("*.example.com:22", "a.example.com", 22, True),
        ("*.example.com:22", "a.example.com", 443, False),
        ("bücher.example", "xn--bcher-kva.example", 443, True),
        ("xn--bcher-kva.example", "BÜCHER.example", 443, True),
        ("_srv.example.com", "_srv.example.com", 443, True),
        ("203.0.113.7", "203.0.113.7", 5, True),
        ("203.0.113.7", "203.0.113.8", 5, False),
        ("203.0.113.7:22", "203.0.113.7", 22, True),
        ("203.0.113.7:22", "203.0.113.7", 23, False),
        ("203.0.113.0/24", "203.0.113.99", 22, True),
        ("203.0.113.0/24:22", "203.0.113.99", 23, False),
        ("203.0.113.7", "::ffff:203.0.113.7", 22, True),
        ("[::ffff:203.0.113.7]", "203.0.113.7", 22, True),
        ("[2001:db8::1]", "2001:db8::1", 22, True),
        ("[2001:db8::1]:443", "2001:db8::1", 22, False),
        ("[2001:DB8:0::1]:443", "2001:db8::1", 443, True),
        ("2001:db8::/32", "2001:db8:5::1", 443, True),
        ("[2001:db8::/32]:443", "2001:db8:5::1", 443, True),
        ("203.0.113.7", "example.com", 443, False),
        ("example.com", "203.0.113.7", 443, False),
        ("0.0.0.0/0", "example.com", 443, False),
    ],
)
def test_a_pattern_means(pattern: str, host: str, port: int, meant: bool) -> None:
    """Section 5.3 of the protocol, as a table: the same pattern allows, and denies, exactly this."""
    one = _host(host)
    assert Policy([pattern]).judge(one, port).allowed is meant  # type: ignore[arg-type]
    assert Policy(None, [pattern]).judge(one, port).allowed is not meant  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "pattern",
    [
        "", " example.com", "https://example.com", "exa mple.com", "*", "*.", "a.*.com", "**.example.com",
        "*example.com",
        "example.com:", "example.com:0", "example.com:65536", "example.com:٤٤٣", "example.com:+1", "example..com",
        ".example.com", "-a.example.com", "a" * 64 + ".com", "a." * 130 + "com", "2001:db8::1", "[2001:db8::1",
        "[2001:db8::1]443", "[fe80::1%eth0]", "[203.0.113.7]x", "256.1.1.1", "127.1", "2130706433", "0x7f.0.0.1",
        "203.0.113.7/24", "203.0.113.0/33", "example.com/24", "\uff11\uff12\uff17.0.0.1x.1", "exam\x00ple.com",
        "x" * 600,
    ],
)  # fmt: skip
def test_a_bad_pattern_says_what_is_wrong(pattern: str) -> None:
    """It is refused with the pattern and a reason, never taken for something else."""
    with pytest.raises(ValueError, match=r"^.+: .+"):
        parse(pattern)


def test_absent_means_all_and_empty_means_none() -> None:
    assert Policy(None).judge("example.com", 443).allowed
    nothing = Policy([]).judge("example.com", 443)
    assert (nothing.allowed, nothing.open) == (False, False)
    assert "nothing" in nothing.sentence


def test_deny_goes_before_allow_and_sees_resolved_addresses() -> None:
    """A denied range is denied to an allowed name too, once it resolves there; the decision names the rule."""
    policy = Policy(["*.example.com"], ["bad.example.com", "198.51.100.0/24"])
    assert policy.judge("bad.example.com", 443).rule == "bad.example.com"
    assert policy.judge("good.example.com", 443).rule == "*.example.com"
    resolved = policy.judge("good.example.com", 443, ip_address("198.51.100.9"))
    assert (resolved.allowed, resolved.rule) == (False, "198.51.100.0/24")


def test_a_name_is_looked_up_undecided_only_for_an_ipv6_pattern() -> None:
    """An IPv4 pattern never makes anybody look a name up; an IPv6 one does, and allows only that address."""
    assert not Policy(["203.0.113.7"]).judge("example.com", 443).open
    assert not Policy(["203.0.113.7"]).judge("example.com", 443, ip_address("203.0.113.7")).allowed
    policy = Policy(["[2001:db8::1]:443"])
    assert policy.judge("example.com", 443).open
    assert not policy.judge("example.com", 80).open
    assert policy.judge("example.com", 443, ip_address("2001:db8::1")).allowed
    assert not policy.judge("example.com", 443, ip_address("2001:db8::2")).allowed


@given(NAME, PORT, PORT, st.booleans())
def test_a_pattern_of_a_name_matches_that_name_only(name: str, port: int, other: int, upper: bool) -> None:
    """Any name, in either case, with and without its dot: its own port and no other."""
    policy = Policy([f"{name.upper() if upper else name}.:{port}"])
    assert policy.judge(fold(name), port).allowed
    assert policy.judge(fold(name), other).allowed is (port == other)
    assert not policy.judge(fold(f"x{name}"), port).allowed
    assert not policy.judge(fold(f"x.{name}"), port).allowed


@given(st.text(max_size=80))
def test_any_text_is_a_rule_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        rule = parse(text)
        assert bool(rule.name) is (rule.network is None)


REFUSED = [
    "0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.0.1", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "100.64.0.1", "100.100.100.200", "169.254.169.254", "192.0.0.192", "224.0.0.1", "239.1.1.1", "240.0.0.1",
    "255.255.255.255", "168.63.129.16", "::", "::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::10.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1",
    "2002:7f00:1::1", "2002:0a00:0001::", "2001:0:0a00:1::", "2001:0:4136:e378:8000:63bf:f5ff:fffe",
    "2001:db8::5efe:10.0.0.1", "2001:db8::200:5efe:10.0.0.1", "203.0.113.250",
]  # fmt: skip
PUBLIC = ["1.1.1.1", "203.0.113.1", "192.0.2.1", "198.51.100.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111"]
PUBLIC += ["2001:db8::1", "64:ff9b::1.1.1.1", "::ffff:1.1.1.1", "2002:101:101::"]


def test_what_is_always_refused() -> None:
    """Private, local and metadata addresses in every spelling, and the host's own; documentation ranges are not."""
    refusals = Refusals(is_own=lambda address: str(address) == "203.0.113.250")
    assert [text for text in REFUSED if refusals.of_address(ip_address(text), 443) is None] == []
    assert [text for text in PUBLIC if refusals.of_address(ip_address(text), 443) is not None] == []
    for name in ("metadata.google.internal", "localhost", "x.localhost", "instance-data"):
        assert refusals.of_name(name, 80) is not None
    assert refusals.of_name("example.com", 80) is None


def test_the_administrator_opens_ranges_and_named_hosts() -> None:
    """A range opens its addresses, a name what it resolves to, each on its port; nothing else is opened with it."""
    refusals = Refusals(["10.1.0.0/16", "db.corp.example:5432", "*.lab.example"])
    assert refusals.of_address(ip_address("10.1.2.3"), 80) is None
    assert refusals.of_address(ip_address("::ffff:10.1.2.3"), 80) is None
    assert refusals.of_address(ip_address("10.2.2.3"), 80) == "private"
    assert refusals.of_address(ip_address("192.168.0.9"), 5432, "db.corp.example") is None
    assert refusals.of_address(ip_address("192.168.0.9"), 22, "db.corp.example") == "private"
    assert refusals.of_address(ip_address("127.0.0.1"), 22, "a.lab.example") is None
    with pytest.raises(ValueError, match="port"):
        Refusals(["10.0.0.1:0"])


@given(st.ip_addresses(v=4))
def test_no_wrapping_hides_an_address(address: IPv4Address) -> None:
    """However IPv6 wraps an IPv4 address, it is refused where the address is."""
    refusals = Refusals()
    bare = refusals.of_address(address, 443)
    number = int(address)
    for wrapped in (0xFFFF << 32 | number, 0x0064_FF9B << 96 | number, 0x2002 << 112 | number << 80):
        assert (refusals.of_address(ip_address(wrapped.to_bytes(16)), 443) is None) is (bare is None)
