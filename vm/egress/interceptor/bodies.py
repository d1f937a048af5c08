"""Bodies in both directions, piece by piece: values go into requests, and are taken out of answers. Pure.

What comes of a piece comes in pieces, too, so that the work can stop behind each; one of them is empty where nothing
can go on yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from vm.egress.interceptor.coding import Decoding, Undecodable
from vm.egress.interceptor.messages import GrpcMessages
from vm.egress.interceptor.replace import Replacements, Stream
from vm.egress.interceptor.substitute import Watch
from vm.egress.interceptor.work import Pace, Work

MAX_WHOLE = 16 * 2**20
"""Bytes that a body which is looked through as a whole may become."""


_SLICE = 2**14
_SLACK, _TIMES = 2**20, 16
"""Bytes that values may make of a body, beyond so many times what it was: a placeholder may stand there often."""


class RequestBody:
    """A request's body; `found` is told which placeholders are in it. An empty piece ends it."""

    def __init__(self, replacements: Callable[[], Replacements], found: Callable[[set[str]], None]) -> None:
        self.decoding = Decoding("")
        self._watch = Watch(found)
        self._stream = Stream(replacements)
        self._got = self._made = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What goes on. Undecodable."""
        if not data:
            self.decoding.end()
            self._watch.feed(b"", last=True)
            if rest := self._stream.end():
                yield rest
            return
        for piece in self.decoding.feed(data):
            for place in range(0, len(piece), _SLICE):
                yield self._filled(piece[place : place + _SLICE])

    def _filled(self, piece: bytes) -> bytes:
        self._watch.feed(piece)
        out = self._stream.feed(piece)
        self._got += len(piece)
        self._made += len(out)
        if self._made > _SLACK + _TIMES * self._got:
            raise Undecodable("it becomes much longer with values in it")
        return out


class PassedBody:
    """A request's body that goes on as it is; `found` is told of placeholders in it, as far as its coding is undone."""

    def __init__(self, content_encoding: str, found: Callable[[set[str]], None]) -> None:
        self._watch = Watch(found)
        self._decoding: Decoding | None = None
        with suppress(Undecodable):
            self._decoding = Decoding(content_encoding)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The same bytes."""
        try:
            for piece in self._decoding.feed(data) if self._decoding is not None and data else ():
                self._watch.feed(piece)
                yield b""
        except Undecodable:
            self._decoding = None
        if not data:
            self._watch.feed(b"", last=True)
        else:
            yield data


class AnswerBody:
    """An answer's body; `grpc` says that its messages count their own bytes. An empty piece ends it."""

    def __init__(self, replacements: Callable[[], Replacements], decoding: Decoding, *, grpc: bool) -> None:
        self._decoding = decoding
        self._messages = GrpcMessages() if grpc else None
        self._stream = Stream(replacements)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What goes on. Undecodable, Compressed."""
        if not data:
            self._decoding.end()
            if rest := self._stream.end():
                yield rest
            return
        for piece in self._decoding.feed(data):
            if self._messages is not None:
                self._messages.feed(piece)
            yield self._stream.feed(piece)


async def whole(
    body: RequestBody | AnswerBody, data: bytes, pace: Pace, take: Callable[[int], bool], most: int = MAX_WHOLE
) -> bytes:
    """All of a body that is here as a whole; `take` says whether there is room for so many bytes more than it had.

    Undecodable also where there is none, and where it becomes more than `most` bytes.
    """
    out = bytearray()
    room = len(data)
    work = Work()
    for piece in (data, b""):
        for part in body.feed(piece):
            out += part
            if len(out) > most:
                raise Undecodable(f"it becomes longer than {most // 2**20} MiB")
            if len(out) > room:
                if not take(len(out) - room):
                    raise Undecodable("too much of this sandbox's is under way")
                room = len(out)
            work.made(len(part))
            if work.enough:
                pace.worked(work.seconds)
                await pace.rest()
                work.begin()
    pace.worked(work.seconds)
    return bytes(out)
