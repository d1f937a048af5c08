"""The pure parts: however a stream is cut, the same is replaced, and nothing is held back that need not be."""

from __future__ import annotations

import asyncio
import base64
import gzip
import itertools
import os
import sys
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv6Address
from types import FrameType
from typing import Any

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vm.egress.interceptor.scene import placeholder, secret
from vm.egress.handover import HandOver, head, read_head
from vm.egress.interceptor.bodies import AnswerBody, RequestBody, whole
from vm.egress.interceptor.budget import Budget, Held
from vm.egress.interceptor.coding import Decoding, Undecodable
from vm.egress.interceptor.forms import forms
from vm.egress.interceptor.frames import BadFrame, Frames
from vm.egress.interceptor.messages import Compressed, GrpcMessages
from vm.egress.interceptor.replace import NOTHING, Replacements, Stream
from vm.egress.interceptor.requests import shown_path
from vm.egress.interceptor.substitute import Unfit, Watch, in_body, in_headers, in_target
from vm.egress.policy import Decision


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[begin:end] for begin, end in itertools.pairwise(edges)]


needles = st.lists(st.text("ab", min_size=1, max_size=6).map(str.encode), min_size=1, max_size=4, unique=True)


@given(needles, st.text("abc", max_size=60).map(str.encode), st.lists(st.integers(0, 100), max_size=20))
def test_cuts_change_nothing(found: list[bytes], data: bytes, places: list[int]) -> None:
    """However a stream is cut, the outcome is that of the whole, and less than the longest needle is held back."""
    replacements = Replacements({one: b"<%d>" % number for number, one in enumerate(found)})
    stream, out, fed = Stream(lambda: replacements), b"", 0
    for piece in cut(data, places):
        out += stream.feed(piece)
        fed += len(piece)
        assert len(stream._held) < max(map(len, found))
    assert out + stream.end() == replacements.whole(data)


def replaced_by_hand(pairs: Mapping[bytes, bytes], data: bytes) -> bytes:
    """What must come of it: at each place the longest that stands there, and on behind it."""
    out, place = b"", 0
    while place < len(data):
        found = max((one for one in pairs if data.startswith(one, place)), key=len, default=b"")
        out += pairs[found] if found else data[place : place + 1]
        place += len(found) or 1
    return out


def fed(replacements: Replacements, data: bytes, places: Iterable[int]) -> bytes:
    """The same in pieces, cut at those places."""
    stream = Stream(lambda: replacements)
    return b"".join(stream.feed(piece) for piece in cut(data, places)) + stream.end()


repeated = st.builds(lambda one, times: one * times, st.text("ab", min_size=1, max_size=3), st.integers(1, 90))
alike = st.lists(repeated, min_size=1, max_size=3).map(lambda parts: "".join(parts).encode())


@given(
    st.lists(alike, min_size=1, max_size=6, unique=True),
    st.lists(st.one_of(alike, st.text("abc", max_size=9).map(str.encode)), max_size=6).map(b"".join),
    st.lists(st.integers(0, 1000), max_size=20),
)
def test_what_is_replaced_is_what_must_be(found: list[bytes], data: bytes, places: list[int]) -> None:
    """Also where all of it looks like the beginning of everything, in hundreds of places."""
    pairs = {one: b"<%d>" % number for number, one in enumerate(found)}
    replacements = Replacements(pairs)
    assert replacements.whole(data) == fed(replacements, data, places) == replaced_by_hand(pairs, data)


@given(st.data(), st.lists(st.text(min_size=4, max_size=30), min_size=1, max_size=3), st.lists(st.integers(0, 5000)))
def test_every_spelling_is_replaced_wherever_a_stream_is_cut(
    data: st.DataObject, values: list[str], at: list[int]
) -> None:
    """Of several values, among parts of them."""
    with suppress(UnicodeEncodeError):
        pairs = {form: b"<%d>" % number for number, value in enumerate(values) for form in forms(value)}
        spelled = st.sampled_from(sorted(pairs)) if pairs else st.binary(max_size=3)
        part = st.builds(lambda one, length: one[:length], spelled, st.integers(0, 60))
        text = b"".join(data.draw(st.lists(st.one_of(spelled, part, st.binary(max_size=9)), max_size=9)))
        assert fed(Replacements(pairs), text, at) == replaced_by_hand(pairs, text)


@pytest.mark.parametrize(
    ("found", "data"),
    [
        (["a" * 8 + "b"], "a"),
        (["a" * 60_000 + "b", "a" * 59_000 + "c"], "a"),
        (["a" * 4000 + "b"], "a" * 80 + "c"),
        ([f"{'a' * 8}{number}" for number in range(100)], "a"),
        ([f"{'a' * 8}{number}" for number in range(100)], "a" * 8 + "x"),
    ],
)
def test_what_only_looks_like_a_beginning_costs_no_steps(found: list[str], data: str) -> None:
    """A megabyte of it, in pieces: some steps for each piece and for each of what is looked for, none for a place."""
    replacements = Replacements({one.encode(): b"<found>" for one in found})
    pieces = [(data * 2**20).encode()[place : place + 2**16] for place in range(0, 2**20, 2**16)]
    stream, steps = Stream(lambda: replacements), 0

    def count(_frame: FrameType, event: str, _arg: Any) -> Any:
        nonlocal steps
        steps += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        out = [stream.feed(piece) for piece in pieces]
    finally:
        sys.settrace(before)
    assert b"".join(out) + stream.end() == b"".join(pieces)
    assert steps < len(pieces) * (1000 + 50 * len(found))


def test_nothing_is_held_back_without_reason() -> None:
    """What cannot be the beginning of a needle goes on at once."""
    stream = Stream(lambda: Replacements({b"needle": b"x"}))
    assert stream.feed(b"data: 1\n\n") == b"data: 1\n\n"
    assert stream.feed(b"nee") == b""
    assert stream.feed(b"t") == b"neet"


@given(st.text(min_size=4, max_size=40), st.binary(max_size=7))
def test_every_spelling_of_a_value_is_found(value: str, before: bytes) -> None:
    """Raw, in hexadecimal, and in base64 wherever it stands in what is encoded."""
    try:
        raw = value.encode()
    except UnicodeEncodeError:
        return
    replacements = Replacements(dict.fromkeys(forms(value), b"\0"))
    for spelling in (raw, raw.hex().encode(), base64.b64encode(before + raw), base64.urlsafe_b64encode(before + raw)):
        assert b"\0" in replacements.whole(spelling)


def test_the_spellings_of_a_value_are_not_many() -> None:
    """Every stream is looked through for all of them, of every secret."""
    assert len(forms("<&>'\"=~*/+ \\\u2028\u00e4\U0001f511" * 9)) < 64
    assert len(forms("c2VjcmV0/value+of=padded==")) < 32
    assert len(forms("0123456789abcdef")) < 12


def test_what_counts_its_own_bytes_keeps_its_length() -> None:
    """A replacement is cut, or repeated, to the length of what it replaces."""
    assert Replacements({b"secret": b"ab"}, same_length=True).whole(b"<secret>") == b"<ababab>"
    assert Replacements({b"secret": b"placeholder"}, same_length=True).whole(b"<secret>") == b"<placeh>"


PACK = {"gzip": gzip.compress, "deflate": zlib.compress, "br": brotli.compress}


@given(st.binary(max_size=300), st.lists(st.sampled_from(sorted(PACK)), max_size=2), st.lists(st.integers(0, 400)))
def test_codings_are_undone_however_they_are_cut(data: bytes, names: list[str], places: list[int]) -> None:
    """One or several, in pieces of any size."""
    packed = data
    for name in names:
        packed = PACK[name](packed)
    decoding = Decoding(", ".join(names))
    assert b"".join(part for piece in cut(packed, places) if piece for part in decoding.feed(piece)) == data
    decoding.end()


def test_deflate_without_its_wrapping_and_gzip_of_several_members() -> None:
    """As some servers send them."""
    packer = zlib.compressobj(wbits=-15)
    raw = packer.compress(b"hello" * 100) + packer.flush()
    assert b"".join(Decoding("deflate").feed(raw)) == b"hello" * 100
    assert b"".join(Decoding("gzip").feed(gzip.compress(b"a") + gzip.compress(b"b"))) == b"ab"


@given(st.binary(min_size=1, max_size=200), st.sampled_from(sorted(PACK)))
def test_what_is_no_coding_is_said_so(data: bytes, name: str) -> None:
    """Whatever comes, it is undone or refused, and nothing else happens."""
    decoding = Decoding(name)
    try:
        list(decoding.feed(data))
        decoding.end()
    except Undecodable:
        return


def _frame(opcode: int, payload: bytes, *, final: bool = True, key: bytes = b"") -> bytes:
    length = len(payload)
    mask = 0x80 if key else 0
    size = bytes([mask | length]) if length < 126 else bytes([mask | 126]) + length.to_bytes(2)
    body = bytes(byte ^ key[number % 4] for number, byte in enumerate(payload)) if key else payload
    return bytes([opcode | (0x80 if final else 0)]) + size + key + body


def _read(data: bytes, *, masked: bool) -> list[tuple[int, bytes]]:
    """Messages and control frames in order of their ends."""
    done, parts, kind = [], b"", 0
    while data:
        final, opcode, length, place = data[0] & 0x80, data[0] & 15, data[1] & 127, 2
        if length >= 126:
            width = 2 if length == 126 else 8
            length, place = int.from_bytes(data[2 : 2 + width]), 2 + width
        key = data[place : place + 4] if masked else b""
        place += len(key)
        payload = data[place : place + length]
        if key:
            payload = bytes(byte ^ key[number % 4] for number, byte in enumerate(payload))
        data = data[place + length :]
        if opcode >= 8:
            done.append((opcode, payload))
            continue
        kind, parts = opcode or kind, parts + payload
        if final:
            done.append((kind, parts))
            parts = b""
    return done


@given(
    st.lists(st.lists(st.text("ab", max_size=200).map(str.encode), min_size=1, max_size=4), max_size=4),
    st.lists(st.integers(0, 2000), max_size=20),
    st.booleans(),
)
def test_messages_are_replaced_in_across_frames(messages: list[list[bytes]], places: list[int], masked: bool) -> None:
    """Whatever the frames, and however they are cut, a message is replaced in as one; control frames stay between."""
    replacements = Replacements({b"abba": b"<found>"})
    key = b"\1\2\3\4" if masked else b""
    data = b""
    for parts in messages:
        for number, part in enumerate(parts):
            data += _frame(0 if number else 1, part, final=number == len(parts) - 1, key=key)
            data += _frame(9, b"ping", key=key)
    frames = Frames(masked=masked, messages=lambda: replacements, control=lambda: NOTHING)
    out = b"".join(frames.feed(piece) for piece in cut(data, places))
    got = [payload for opcode, payload in _read(out, masked=masked) if opcode == 1]
    assert got == [replacements.whole(b"".join(parts)) for parts in messages]
    assert len([1 for opcode, _ in _read(out, masked=masked) if opcode == 9]) == sum(map(len, messages))


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1\x00",
        b"\x81\x80\0\0\0\0",
        b"\x80\x00",
        b"\x89\x7e\x00\x80" + bytes(128),
        b"\x09\x00",
        b"\x81\x7f\xff" + bytes(7),
        b"\x01\x00\x01\x00",
    ],
)
def test_what_is_no_frame_ends_the_stream(data: bytes) -> None:
    """An extension, a mask where none is due, parts of nothing, control frames that are too long or in parts."""
    with pytest.raises(BadFrame):
        Frames(masked=False, messages=lambda: NOTHING, control=lambda: NOTHING).feed(data)


def test_what_is_held_counts_for_a_machine_and_for_all_until_it_is_given_back() -> None:
    """Neither has more than its most, whatever the other has room for, and nothing is given back twice."""
    all_of_them = Budget(10)
    machines = [Budget(8, within=all_of_them), Budget(8, within=all_of_them)]
    first, second = Held(machines[0]), Held(machines[1])
    assert (first.take("a", 6), first.take("b", 2), first.take("b", 1)) == (True, True, False)
    assert (second.take("c", 3), second.take("c", 2)) == (False, True)
    assert (all_of_them.held, [one.held for one in machines]) == (10, [8, 2])
    for _ in range(2):
        first.give("a")
    assert second.take("d", 6)
    assert [second.keep("d", count) for count in (8, 5, 2, 7, 9)] == [False, True, True, False, False]
    assert [one.held for one in machines] == [2, 4]
    assert second.keep("d", 6)
    for _ in range(2):
        first.close()
        second.close()
    assert (all_of_them.held, [one.held for one in machines]) == (0, [0, 0])
    assert not first.take("late", 1)


def test_a_head_with_values_in_it_has_a_bound() -> None:
    """However often a placeholder stands there, in one field, in many, or in the target; one long value fits."""
    token = secret(value="v" * 65_536, places=("path", "query"))
    mark = token.placeholder.encode()
    assert in_headers([(b"x", mark)], [token]) == [(b"x", b"v" * 65_536)]
    for fields in ([(b"x", mark * 4000)], [(b"x", mark)] * 5):
        with pytest.raises(Unfit, match="more than 256 KiB"):
            in_headers(fields, [token])
    for target in (b"/" + mark * 5, b"/?" + mark * 5):
        with pytest.raises(Unfit, match="more than 256 KiB"):
            in_target(target, [token])


def test_a_body_becomes_not_much_longer_with_values_in_it() -> None:
    """One long value fits into a short one; a body of nothing but its placeholders is refused before it is made."""
    token = secret(value="v" * 65_536, places=("body",))
    mark = token.placeholder.encode()
    replacements = in_body("", [token])
    filled = whole(RequestBody(lambda: replacements, lambda found: None), mark, Pace(), lambda count: True)
    assert asyncio.run(filled) == b"v" * 65_536
    body, made = RequestBody(lambda: replacements, lambda found: None), 0
    with pytest.raises(Undecodable, match="much longer"):  # noqa: PT012
        for piece in body.feed(mark * 18_000):
            made += len(piece)
    assert made < 20 * 2**20


class Pace:
    """Counts how often others had their turn."""

    def __init__(self) -> None:
        self.rests = 0

    def worked(self, seconds: float) -> None:
        pass

    async def rest(self) -> None:
        self.rests += 1


def test_others_have_their_turn_while_a_body_becomes_much() -> None:
    """Behind each part of what one piece becomes; and what it becomes is counted."""
    pace, taken = Pace(), []

    def take(count: int) -> bool:
        taken.append(count)
        return sum(taken) <= 2**23

    def body() -> AnswerBody:
        return AnswerBody(lambda: Replacements({b"aaaaaaaab": b"x"}), Decoding("gzip"), grpc=False)

    packed = gzip.compress(b"a" * 2**22)
    assert asyncio.run(whole(body(), packed, pace, take)) == b"a" * 2**22
    assert pace.rests >= 8
    assert sum(taken) == 2**22 - len(packed)
    with pytest.raises(Undecodable, match="under way"):
        asyncio.run(whole(body(), gzip.compress(b"a" * 3 * 2**21), pace, take))


@given(st.lists(st.binary(max_size=50), max_size=5), st.lists(st.integers(0, 300), max_size=20))
def test_grpc_is_followed_and_what_is_compressed_is_noticed(messages: list[bytes], places: list[int]) -> None:
    """Plain messages pass however they are cut; one with its flag set does not."""
    plain = b"".join(b"\0" + len(one).to_bytes(4) + one for one in messages)
    follower = GrpcMessages()
    for piece in cut(plain, places):
        follower.feed(piece)
    with pytest.raises(Compressed):
        follower.feed(b"\1")


@given(st.binary(max_size=60), st.lists(st.integers(0, 300), max_size=20))
def test_a_placeholder_is_noticed_however_it_is_cut(around: bytes, places: list[int]) -> None:
    """Once, and as a whole."""
    one = placeholder()
    found: set[str] = set()
    watch = Watch(found.update)
    for piece in cut(around + one.encode() + b"!" + around, places):
        watch.feed(piece)
    watch.feed(b"", last=True)
    assert found == {one}


def test_a_value_with_a_nul_cannot_stand_in_a_header_but_in_a_path() -> None:
    """There it is escaped."""
    token = replace(secret(), value="a\0b", places=("path",))
    with pytest.raises(Unfit, match=r"^the value of T "):
        in_headers([(b"x", token.placeholder.encode())], [token])
    assert in_target(f"/{token.placeholder}".encode(), [token]) == b"/a%00b"


@given(st.binary(max_size=100))
def test_a_path_is_written_down_without_values_of_its_query(target: bytes) -> None:
    """Whatever stands behind an equals sign of the query is not there."""
    path, _, _query = target.partition(b"?")
    assert "=" not in shown_path(target)[len(path) :]


@pytest.mark.parametrize(
    "handed",
    [
        HandOver("a" * 64, "api.example", 443, denied=Decision(False, "rule", 'säys "no"\r\nX: y'), failed=True),
        HandOver("0" * 64, "xn--4ca.example", 8443, address=IPv6Address("2001:db8::1")),
    ],
)
def test_a_hand_over_is_read_as_it_was_written(handed: HandOver) -> None:
    """And bytes that are a little different are none."""
    said = head(handed)
    assert read_head(said) == handed
    for number in range(len(said)):
        other = said[:number] + os.urandom(1) + said[number + 1 :]
        try:
            assert read_head(other) is not None
        except ValueError:
            continue
