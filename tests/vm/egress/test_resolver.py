"""The guest's resolver gives every name an address of its own, asks nobody, and survives whatever it is sent."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vm.egress import dns
from vm.egress.resolver import MAX_NAMES, VIRTUAL, NamesFile, VirtualNames, respond


def _code(reply: bytes | None) -> int:
    assert reply is not None
    return reply[3] & 15


def _addresses(reply: bytes | None, asked: bytes) -> list[str]:
    assert reply is not None
    return [str(address) for address in dns.answer_read(reply, asked).addresses]


def _lookup(name: str, names: VirtualNames, kind: int = dns.A) -> list[str]:
    asked = dns.ask(7, name, kind)
    return _addresses(respond(asked, names), asked)


def test_every_name_has_one_address_of_its_own() -> None:
    """The same name, in any case, has the same virtual address; another name another one; each leads back."""
    names = VirtualNames()
    first, second = _lookup("one.example", names), _lookup("two.example", names)
    assert first != second
    assert _lookup("ONE.example", names) == first
    assert IPv4Address(first[0]) in VIRTUAL
    assert names.name_of(IPv4Address(first[0])) == "one.example"
    assert names.name_of(IPv4Address(second[0]) + 1) is None
    assert names.name_of(VIRTUAL.network_address) is None


@pytest.mark.parametrize("kind", [dns.AAAA, 65, 64, 16, 15, 12, 33, 255, 2, 6])
def test_other_questions_are_answered_empty(kind: int) -> None:
    """AAAA, HTTPS, TXT and whatever else there is: no error, nothing in it, and no name is spent on it."""
    names = VirtualNames()
    asked = dns.ask(7, "one.example", kind)
    reply = respond(asked, names)
    assert (_code(reply), _addresses(reply, asked), list(names)) == (dns.NOERROR, [], [])


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("router", dns.NXDOMAIN),
        ("127.0.0.1", dns.NXDOMAIN),
        ("0x7f.1", dns.NXDOMAIN),
        ("a.0x7f", dns.NXDOMAIN),
        ("sp ace.example", dns.NXDOMAIN),
        ("localhost", dns.NOERROR),
    ],
)
def test_names_that_are_no_hosts(name: str, code: int) -> None:
    """Single labels, numbers and nonsense do not exist; `localhost` is the guest itself."""
    names = VirtualNames()
    asked = dns.ask(7, name, dns.A)
    assert _code(respond(asked, names)) == code
    assert list(names) == []
    if code == dns.NOERROR:
        assert _addresses(respond(asked, names), asked) == ["127.0.0.1"]


def test_a_single_label_that_was_opened_exists() -> None:
    asked = dns.ask(7, "registry", dns.A)
    assert len(_addresses(respond(asked, VirtualNames(), lambda name: name == "registry"), asked)) == 1


def test_names_are_limited_and_never_given_out_again() -> None:
    """The 4,097th name is SERVFAIL; those before keep what they have."""
    names = VirtualNames(f"n{number}.example" for number in range(MAX_NAMES))
    assert _code(respond(dns.ask(7, "more.example", dns.A), names)) == dns.SERVFAIL
    assert len(_lookup("n4095.example", names)) == 1


def test_names_outlive_the_node(tmp_path: Path) -> None:
    """What a guest was told is the same with the next node; a line that was cut is forgotten."""
    file = tmp_path / "names"
    names = NamesFile(file).load()
    first, second = _lookup("one.example", names), _lookup("two.example", names)
    with file.open("ab") as lines:
        lines.write(b"cut.exam")
    later = NamesFile(file).load()
    assert list(later) == ["one.example", "two.example"]
    third = _lookup("three.example", later)
    again = NamesFile(file).load()
    assert [_lookup(name, again) for name in ("two.example", "one.example", "three.example")] == [second, first, third]


def test_a_name_that_cannot_be_written_down_is_not_told(tmp_path: Path) -> None:
    names = NamesFile(tmp_path / "missing" / "names").load()
    assert _code(respond(dns.ask(7, "one.example", dns.A), names)) == dns.SERVFAIL


def test_extended_queries_get_extended_answers() -> None:
    asked = bytearray(dns.ask(7, "one.example", dns.A))
    asked[11] = 1
    reply = respond(bytes(asked) + b"\x00" + struct.pack(">HHIH", 41, 4096, 0, 0), VirtualNames())
    assert reply is not None
    assert reply[10:12] == b"\x00\x01"
    assert reply[-11:-8] == b"\x00\x00\x29"


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"", None),
        (b"\x00" * 11, None),
        (struct.pack(">6H", 7, 0x8180, 1, 0, 0, 0) + b"\x01a\x00\x00\x01\x00\x01", None),
        (struct.pack(">6H", 7, 0x0100, 0, 0, 0, 0), dns.FORMERR),
        (struct.pack(">6H", 7, 0x0100, 2, 0, 0, 0) + b"\x01a\x00\x00\x01\x00\x01" * 2, dns.FORMERR),
        (struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + b"\xc0\x0c\x00\x01\x00\x01", dns.FORMERR),
        (struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + b"\x3fabc", dns.FORMERR),
        (struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + b"\x01a" * 130 + b"\x00\x00\x01\x00\x01", dns.FORMERR),
        (struct.pack(">6H", 7, 0x2800, 1, 0, 0, 0) + b"\x01a\x00\x00\x06\x00\x01", dns.NOTIMP),
        (struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + b"\x01a\x00\x00\x01\x00\x03", dns.NOTIMP),
        (dns.ask(7, "one.example", dns.A) + b"x" * 1300, dns.FORMERR),
    ],
)
def test_what_is_no_question_gets_an_error_or_nothing(message: bytes, code: int | None) -> None:
    """Nothing that looks like an answer is ever answered."""
    reply = respond(message, VirtualNames())
    assert reply is None if code is None else _code(reply) == code


@given(st.binary(max_size=600))
def test_any_bytes_are_survived(message: bytes) -> None:
    for data in (message, struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0) + message):
        reply = respond(data, VirtualNames())
        assert reply is None or len(reply) <= len(data) + 30


@given(st.binary(max_size=300), st.integers(1, 5))
def test_any_answer_from_upstream_is_survived(message: bytes, answers: int) -> None:
    """An upstream's answer is read or Malformed, never an endless loop or another exception."""
    asked = dns.ask(7, "one.example", dns.A)
    try:
        dns.answer_read(struct.pack(">6H", 7, 0x8180, 1, answers, 0, 0) + asked[12:] + message, asked)
    except dns.Malformed:
        return


def test_an_upstream_answer_follows_its_aliases_only() -> None:
    """Addresses of the name and of what it is an alias of are taken; a record about another name is not."""
    asked = dns.ask(7, "one.example", dns.A)
    alias = b"\x03two\xc0\x10"
    body = b"\xc0\x0c" + struct.pack(">HHIH", dns.CNAME, 1, 5, len(alias)) + alias
    body += alias + struct.pack(">HHIH", dns.A, 1, 5, 4) + IPv4Address("192.0.2.1").packed
    body += b"\x04evil\x00" + struct.pack(">HHIH", dns.A, 1, 5, 4) + IPv4Address("192.0.2.2").packed
    body += alias + struct.pack(">HHIH", dns.AAAA, 1, 5, 16) + IPv6Address("2001:db8::1").packed
    message = struct.pack(">6H", 7, 0x8180, 1, 4, 0, 0) + asked[12:] + body
    answer = dns.answer_read(message, asked)
    assert [str(address) for address in answer.addresses] == ["192.0.2.1", "2001:db8::1"]
    with pytest.raises(dns.Malformed):
        dns.answer_read(message, dns.ask(8, "one.example", dns.A))
    with pytest.raises(dns.Malformed):
        dns.answer_read(message, dns.ask(7, "two.example", dns.A))
