"""The first bytes of a connection are read however they are split, and never taken for something they are not."""

from __future__ import annotations

import ssl
from contextlib import suppress
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vm.egress.peek import MAX_PEEK, Claim, Speech, Unreadable, read_head, read_hello, speech


def hello(name: str | None) -> bytes:
    """A real client's ClientHello."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def split(data: bytes, size: int) -> bytes:
    """The same handshake in records of that size."""
    body = data[5:]
    pieces = [body[place : place + size] for place in range(0, len(body), size)]
    return b"".join(data[:3] + len(piece).to_bytes(2) + piece for piece in pieces)


def extension(kind: int, body: bytes) -> bytes:
    """One extension of a ClientHello."""
    return kind.to_bytes(2) + len(body).to_bytes(2) + body


def server_name(name: bytes) -> bytes:
    """The body of its server_name."""
    entry = b"\0" + len(name).to_bytes(2) + name
    return len(entry).to_bytes(2) + entry


def bare_hello(extensions: bytes) -> bytes:
    """A ClientHello with these extensions only."""
    body = b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0" + len(extensions).to_bytes(2) + extensions
    message = b"\1" + len(body).to_bytes(3) + body
    return b"\x16\3\1" + len(message).to_bytes(2) + message


def with_names(data: bytes, old: bytes, new: bytes) -> bytes:
    """The hello with another name of the same length, whatever it may be."""
    assert len(old) == len(new)
    assert old in data
    return data.replace(old, new)


def test_the_name_is_read_from_any_split() -> None:
    """Byte by byte, in one piece, in many records: nothing before it is whole, and then the same name."""
    data = hello("www.example.com")
    for end in range(len(data)):
        assert read_hello(data[:end]) is None
    for size in (10_000, 100, 20):
        assert read_hello(split(data, size)) == Claim("www.example.com")
    assert read_hello(data + b"anything") == Claim("www.example.com")
    assert read_hello(hello(None)) == Claim(None)


def test_a_name_is_folded_and_must_be_one() -> None:
    data = hello("www.example.com")
    old = b"www.example.com"
    assert read_hello(with_names(data, old, b"WWW.EXAMPLE.com")) == Claim("www.example.com")
    assert read_hello(with_names(data, old, b"www.exampl.com.")) == Claim("www.exampl.com")
    for bad in (b"203.000.113.001", b"www.exa ple.com", b"www..xample.com", b"www.example.\xff\xff\xff"):
        with pytest.raises(Unreadable):
            read_hello(with_names(data, old, bad))


def test_two_names_are_none() -> None:
    """A hello that names two hosts, in one extension or in two, is refused: which one would the server take?"""
    data = bytearray(hello("aaaaaaa.example.com"))
    place = data.find(b"aaaaaaa.example.com")
    # The 19 bytes of the one name become two entries of the same list: 8 + 3 + 8
    data[place - 2 : place] = (8).to_bytes(2)
    data[place : place + 19] = b"aaaa.com" + b"\x00\x00\x08" + b"bbbb.com"
    with pytest.raises(Unreadable, match="more than one"):
        read_hello(bytes(data))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"\x16\x02\x00\x00\x05",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\xff\xff",
        b"\x16\x03\x01\x00\x01\x02",
        b"\x15\x03\x01\x00\x02\x01\x00",
        b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",
        b"\x16\x03\x01\x00\x01\x01" * 65,
    ],
)
def test_what_is_no_hello(data: bytes) -> None:
    with pytest.raises(Unreadable):
        read_hello(data)


def test_a_hello_without_end_is_given_up() -> None:
    big = b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + b"x" * 16_380
    with pytest.raises(Unreadable):
        read_hello(big * 3)


@given(st.binary(max_size=400), st.integers(0, 400))
def test_any_bytes_are_survived(noise: bytes, place: int) -> None:
    """Whatever is written into a real hello, the outcome is a claim, nothing yet, or Unreadable."""
    data = bytearray(HELLO)
    data[place : place + len(noise)] = noise
    for one in (bytes(data), noise):
        for reader in (read_hello, read_head):
            with suppress(Unreadable):
                reader(one)


HELLO = hello("www.example.com")


@pytest.mark.parametrize(
    ("head", "claim"),
    [
        ("GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", Claim("example.com")),
        ("GET / HTTP/1.1\r\nhOsT:EXAMPLE.com.:80  \r\nX: y\r\n\r\nbody", Claim("example.com", 80)),
        ("GET http://example.com/x HTTP/1.1\r\nHost: example.com\r\n\r\n", Claim("example.com")),
        ("OPTIONS * HTTP/1.0\r\nHost: 203.0.113.1:80\r\n\r\n", Claim(ip_address("203.0.113.1"), 80)),
    ],
)
def test_a_request_names_its_host(head: str, claim: Claim) -> None:
    data = head.encode()
    assert read_head(data) == claim
    assert read_head(data[: data.find(b"\r\n\r\n") + 3]) is None


@pytest.mark.parametrize(
    "head",
    [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.com\r\nHost: a.com\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.com\r\nHost : b.com\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.com\r\n b.com\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.com, b.com\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.com:x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: 2130706433\r\n\r\n",
        "GET http://b.com/ HTTP/1.1\r\nHost: a.com\r\n\r\n",
        "GET http://a.com@b.com/ HTTP/1.1\r\nHost: a.com\r\n\r\n",
        "GET https://a.com/ HTTP/1.1\r\nHost: a.com\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a.com\r\n\r\n",
        "GET / HTTP/2.0\r\nHost: a.com\r\n\r\n",
        "CONNECT a.com:443 HTTP/1.1\r\nHost: a.com\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET / HTTP/1.1\nHost: a.com\n\n",
        "\r\nGET / HTTP/1.1\r\nHost: a.com\r\n\r\n"[:3],
        "x" * (MAX_PEEK + 1),
    ],
)
def test_a_request_without_one_plain_host_is_refused(head: str) -> None:
    with pytest.raises(Unreadable):
        read_head(head.encode())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", None),
        (b"\x16", None),
        (b"\x16\x03", Speech.TLS),
        (b"\x15\x03\x01\x00\x02\x01\x5a", Speech.TLS),
        (b"\x14\x03\x03\x00\x01\x01", Speech.TLS),
        (b"\x18\x03\x03", Speech.TLS),
        (b"\x16\x02\x00\x00\x05", None),
        (b"\x16\x02\x00\x00\x05\x01", Speech.TLS),
        (b"\x15\x0f\xff\x00\x02\x01", Speech.TLS),
        (b"\x16\x02\x00\x00\x05\x02", Speech.OTHER),
        (b"\x19\x03\x03", Speech.OTHER),
        (b"\x80\x2e\x01", None),
        (b"\x80\x2e\x01\x03", Speech.TLS),
        (b"\x80\x00\x01\x04", Speech.OTHER),
        (b"\r\n\r\nGET", None),
        (b"GET / HTTP/1.1", None),
        (b"GET / HTTP/1.1\n", Speech.HTTP),
        (b"\r\nx\t/\r\n", Speech.HTTP),
        (b"GET http://x\r\n", Speech.HTTP),
        (b"PRI * HTTP/2.0\r\n", Speech.HTTP),
        (b"SSH-2.0-x\r\n", Speech.OTHER),
        (b"PING\r\n", Speech.OTHER),
        (b"OPTIONS rtsp://x/ RTSP/1.0\r\n", Speech.OTHER),
        (b"0032git-upload-pack /x\0", None),
        (b"A" * MAX_PEEK, None),
        (b"A" * (MAX_PEEK + 1), Speech.HTTP),
        (b"A" * 65 + b" / HTTP/1.1\n", Speech.HTTP),
        (b"(A\xff) / HTTP/1.1\n", Speech.HTTP),
        (b"\x85GET\xa0/\n", Speech.HTTP),
        (b"\xa0\x00\x01\x03", Speech.TLS),
        (b"GET\r/\rHTTP/1.1\r\n", Speech.HTTP),
        (b"\v\f\x1cGET\x1d\x1e\x1fpage\x00\n", Speech.HTTP),
        (b"x page\x00 HTTP/1.1\r\n", Speech.HTTP),
        (b"GET\r\n", Speech.OTHER),
        (b"x\x00 / HTTP/1.1\r\n", Speech.OTHER),
        (b"A " + b"x" * MAX_PEEK, Speech.HTTP),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_a_client_speaks(data: bytes, said: Speech | None) -> None:
    """A request is one in any spelling that some server takes; and nothing is said before it is sure."""
    assert speech(data) is said
    assert all(speech(data[:place]) in (None, said) for place in range(min(len(data), 100)))
