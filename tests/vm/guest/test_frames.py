from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vm.guest.frames import (
    HEADER,
    MAGIC,
    MAX_PAYLOAD,
    MAX_STREAMS,
    MAX_WIDE,
    WIDE,
    WINDOW,
    Data,
    EchoScanner,
    Ended,
    Event,
    Granted,
    Inbox,
    LinkReset,
    Multiplexer,
    Opened,
    ProtocolError,
    Reset,
    Type,
    preamble,
)

NONCE = bytes(range(16))


def linked() -> tuple[Multiplexer, Multiplexer]:
    host, guest = Multiplexer(host=True), Multiplexer(host=False)
    assert guest.receive(preamble(NONCE)) == [LinkReset(MAGIC + NONCE)]
    return host, guest


def in_pieces(receiver: Multiplexer, data: bytes, sizes: list[int]) -> list[Event]:
    events: list[Event] = []
    at = 0
    for size in [*sizes, len(data)]:
        events += receiver.receive(data[at : at + size])
        at += size
    return events


@given(st.lists(st.integers(1, 70_000), max_size=20), st.lists(st.binary(min_size=1, max_size=3000), max_size=10))
def test_frames_survive_any_cut(sizes: list[int], payloads: list[bytes]) -> None:
    """However the bytes are cut, the same events come out in order."""
    host, guest = linked()
    number, sent = host.open()
    for payload in payloads:
        sent += host.data(number, payload)
    sent += host.end(number)

    events = in_pieces(guest, sent, sizes)

    assert events == [Opened(number), *(Data(number, payload) for payload in payloads), Ended(number)]


@given(st.binary(max_size=70_000), st.lists(st.integers(1, 70_000), max_size=12))
def test_resynchronises_from_anywhere(rest: bytes, sizes: list[int]) -> None:
    """A guest that was left in the middle of any frame finds the next preamble, however its bytes are cut."""
    guest = Multiplexer(host=False)
    guest.receive(preamble(NONCE) + HEADER.pack(1, Type.OPEN, 0, 0))
    guest.receive(HEADER.pack(1, Type.DATA, 0, MAX_PAYLOAD) + rest[: MAX_PAYLOAD - 1])

    events = in_pieces(guest, preamble(NONCE[::-1]), sizes)

    assert events[-1] == LinkReset(MAGIC + NONCE[::-1])
    assert guest.receive(HEADER.pack(1, Type.OPEN, 0, 0)) == [Opened(1)]


@given(st.binary(max_size=4000))
def test_searching_guest_takes_anything(rubbish: bytes) -> None:
    """A guest that searches drops whatever comes before the preamble, and never fails."""
    guest = Multiplexer(host=False)
    guest.search()

    events = guest.receive(rubbish.replace(MAGIC, b"")) + guest.receive(preamble(NONCE))

    assert events[-1] == LinkReset(MAGIC + NONCE)


@given(st.binary(max_size=4000), st.booleans())
def test_hostile_bytes_raise_protocol_errors_only(data: bytes, host: bool) -> None:
    """No input makes the parser fail in any other way."""
    receiver = Multiplexer(host=host)
    if host:
        receiver.open()
    with contextlib.suppress(ProtocolError):
        receiver.receive(data)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 7), st.sampled_from([0, 0, 0, 1]), st.binary(max_size=8)),
        max_size=30,
    ),
    st.booleans(),
)
def test_hostile_frames_raise_protocol_errors_only(frames: list[tuple[int, int, int, bytes]], host: bool) -> None:
    """No sequence of well-formed frames makes the parser fail in any other way."""
    receiver = Multiplexer(host=host)
    if host:
        receiver.open()
    with contextlib.suppress(ProtocolError):
        for stream, kind, zero, payload in frames:
            receiver.receive(HEADER.pack(stream, kind, zero, len(payload)) + payload)


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_echo_is_found_in_any_pieces(noise: list[bytes]) -> None:
    """The host drops everything up to the echo and keeps what follows it."""
    scanner = EchoScanner(NONCE)
    stream = b"".join(noise).replace(MAGIC, b"") + MAGIC + NONCE + b"after"
    found = None
    for at in range(0, len(stream), 7):
        rest = scanner.feed(stream[at : at + 7])
        if rest is not None:
            found = rest + stream[at + 7 :]
            break

    assert found == b"after"


def test_window_is_enforced_and_granted() -> None:
    """A sender may have one window under way; what the reader took is granted again in steps."""
    host, guest = linked()
    number, frame = host.open()
    guest.receive(frame)
    sent = 0
    while room := host.room(number):
        piece = bytes(min(room, MAX_PAYLOAD))
        guest.receive(host.data(number, piece))
        sent += len(piece)

    assert sent == WINDOW
    with pytest.raises(ValueError, match="window"):
        host.data(number, b"x")
    assert guest.consumed(number, 10) == b""
    assert host.receive(guest.consumed(number, WINDOW // 2)) == [Granted(number)]
    assert host.room(number) == WINDOW // 2 + 10


def test_sending_beyond_the_window_is_a_breach() -> None:
    """A peer that does not keep to the window is cut off."""
    host, _ = linked()
    number, _ = host.open()

    frames = (HEADER.pack(number, Type.DATA, 0, MAX_PAYLOAD) + bytes(MAX_PAYLOAD)) * (WINDOW // MAX_PAYLOAD + 1)

    with pytest.raises(ProtocolError, match="window"):
        host.receive(frames)


def test_granting_more_than_a_window_is_a_breach() -> None:
    """A peer cannot make the sender's window grow beyond a wide one."""
    host, _ = linked()
    number, _ = host.open()

    with pytest.raises(ProtocolError):
        host.receive(HEADER.pack(number, Type.WINDOW, 0, 4) + (WIDE - WINDOW + 1).to_bytes(4, "big"))


def _moved(sender: Multiplexer, receiver: Multiplexer, number: int, size: int) -> None:
    while size:
        piece = bytes(min(sender.room(number), MAX_PAYLOAD, size))
        receiver.receive(sender.data(number, piece))
        sender.receive(receiver.consumed(number, len(piece)))
        size -= len(piece)


def test_much_data_widens_a_few_windows() -> None:
    """Where much moves a window grows, in so many streams only; one that ends makes room for another."""
    host, guest = linked()
    numbers = []
    for _ in range(MAX_WIDE + 1):
        number, frame = host.open()
        guest.receive(frame)
        guest.receive(host.end(number))
        _moved(guest, host, number, 4 * WIDE)
        numbers.append(number)

    rooms = [guest.room(number) for number in numbers]
    assert min(rooms[:-1]) > WIDE // 2
    assert rooms[-1] <= WINDOW
    host.receive(guest.end(numbers[0]))
    _moved(guest, host, numbers[-1], 2 * WINDOW)
    assert guest.room(numbers[-1]) > WIDE // 2


def test_sending_beyond_a_wide_window_is_a_breach() -> None:
    """A wide window is a bound as well."""
    host, guest = linked()
    number, frame = host.open()
    guest.receive(frame)
    _moved(guest, host, number, 2 * WINDOW)

    frame = HEADER.pack(number, Type.DATA, 0, MAX_PAYLOAD) + bytes(MAX_PAYLOAD)

    with pytest.raises(ProtocolError, match="window"):
        host.receive(frame * (WIDE // MAX_PAYLOAD + 1))


def test_each_direction_ends_alone() -> None:
    """A stream is gone when both sides have ended it."""
    host, guest = linked()
    number, frame = host.open()
    guest.receive(frame)
    assert guest.receive(host.end(number)) == [Ended(number)]
    assert host.receive(guest.data(number, b"still")) == [Data(number, b"still")]
    assert host.receive(guest.end(number)) == [Ended(number)]

    assert not host.alive(number)
    assert not guest.alive(number)
    assert host.end(number) == guest.end(number) == b""


def test_reset_crossing_with_data() -> None:
    """What arrives for a stream that this side gave up is dropped without complaint."""
    host, guest = linked()
    number, frame = host.open()
    guest.receive(frame)
    late = guest.data(number, b"late")
    reset = host.reset(number, "enough")

    assert host.receive(late) == []
    assert guest.receive(reset) == [Reset(number, "enough")]


def test_only_the_host_opens() -> None:
    """A guest that opens a stream, or speaks on one that never was, is cut off."""
    for frame in (HEADER.pack(1, Type.OPEN, 0, 0), HEADER.pack(9, Type.DATA, 0, 1) + b"x"):
        host, _ = linked()
        with pytest.raises(ProtocolError):
            host.receive(frame)


def test_number_of_streams_is_bounded() -> None:
    """Neither side opens more than the bound."""
    host, guest = linked()
    for _ in range(MAX_STREAMS):
        guest.receive(host.open()[1])

    with pytest.raises(ProtocolError):
        host.open()
    with pytest.raises(ProtocolError):
        guest.receive(HEADER.pack(MAX_STREAMS + 1, Type.OPEN, 0, 0))


def test_inbox_hands_out_in_order() -> None:
    """Bytes come out as they went in, in pieces of the reader's choosing."""
    inbox = Inbox()
    for piece in (b"abc", b"defg"):
        inbox.put(piece)

    assert [inbox.take(2), inbox.take(2), inbox.take(9), inbox.take(9)] == [b"ab", b"c", b"defg", b""]
    assert not inbox
