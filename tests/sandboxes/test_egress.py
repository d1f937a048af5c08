"""What is said about policies without a machine: what would help a denied connection, and lists written from use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxes.egress import Reached, pattern_of, policy_of, proposal, remedy_of, shown, wrong_patterns
from vm.egress.policy import Policy


@pytest.mark.parametrize(
    ("host", "rule", "allow", "wanted"),
    [
        ("a.example", "allow_net", [], "allow"),
        ("a.example", "allow_net", ["a.example:443"], "done"),
        ("a.example", "allow_net", ["*.example"], "done"),
        ("a.example", "allow_net", ["a.example:80"], "allow"),
        ("a.example", "allow_net", None, "done"),
        ("a.other", "ask", [], "allow"),
        ("a.other", "ask", ["a.other:443"], "done"),
        ("b.other", "ask", [], ""),
        ("a.example", "no SNI", [], ""),
        ("192.0.2.1", "no SNI", [], "allow"),
        ("192.0.2.1", "no SNI", None, ""),
        ("10.0.0.1", "always refused", ["10.0.0.1"], "administrator"),
        ("b.net", "*.net", [], "rule"),
        ("a.net", "a.net", [], "organization_rule"),
        ("a.example", "host mismatch", [], ""),
    ],
)
def test_what_would_let_it_through(host: str, rule: str, allow: list[str] | None, wanted: str) -> None:
    found = remedy_of(
        host=host, port=443, rule=rule, allow_net=allow, deny_net=["*.net", "b.other"], organization=["a.net"]
    )
    assert found == wanted


def test_the_organization_s_rules_hold_beside_the_sandbox_s_own() -> None:
    policy = policy_of(
        allow_net=None, deny_net=["a.example", "b.example"], organization_deny=["b.example", "c.example"]
    )
    assert policy.allow_net is None
    assert list(policy.deny) == ["b.example", "c.example", "a.example"]


def test_a_list_is_written_from_what_was_reached() -> None:
    reached = [
        Reached(host, port, 1, 1)
        for host, port in [
            ("a.cdn.example.net", 443),
            ("b.cdn.example.net", 443),
            ("c.cdn.example.net", 443),
            ("c.cdn.example.net", 80),
            ("x.co.uk", 443),
            ("y.co.uk", 443),
            ("z.co.uk", 443),
            ("192.0.2.7", 22),
            ("b.example.org", 443),
        ]
    ]
    plain = proposal(reached, fold=False)
    assert len(plain) == 9
    assert "192.0.2.7:22" in plain
    folded = proposal(reached, fold=True)
    assert "*.cdn.example.net:443" in folded
    assert "c.cdn.example.net:80" in folded
    assert "*.co.uk:443" not in folded
    assert "x.co.uk:443" in folded


_NAMES = st.from_regex(r"[a-z]{1,3}(\.[a-z]{2,4}){1,3}", fullmatch=True)
_HOSTS = st.lists(st.tuples(_NAMES | st.ip_addresses().map(str), st.integers(1, 65_535)), max_size=40)


@given(hosts=_HOSTS, fold=st.booleans())
def test_every_proposal_allows_what_was_reached(hosts: list[tuple[str, int]], fold: bool) -> None:
    """Whatever was reached: the list is one that a gate takes, and lets all of it through."""
    from ipaddress import ip_address

    policy = Policy(proposal([Reached(host, port, 1, 0) for host, port in hosts], fold=fold))
    for host, port in hosts:
        try:
            where: object = ip_address(host)
        except ValueError:
            where = host
        assert policy.judge(where, port).allowed  # type: ignore[arg-type]


def test_patterns_are_spelled_and_checked() -> None:
    assert pattern_of("a.example", 443) == "a.example:443"
    assert pattern_of("2001:db8::1", 443) == "[2001:db8::1]:443"
    wrong = wrong_patterns(["a.example", "https://b.example", "*.c.example:0"])
    assert [place for place, _why in wrong] == [1, 2]
    assert "URL" in wrong[0][1]


@given(text=st.text())
def test_what_is_shown_has_no_control_characters(text: str) -> None:
    found = shown(text, 50)
    assert len(found) <= 50
    assert "\0" not in found
    found.encode()
