"""Bodies in both directions, piece by piece: values go into requests, and are taken out of answers. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from vm.egress.interceptor.coding import Decoding, Undecodable
from vm.egress.interceptor.messages import GrpcMessages
from vm.egress.interceptor.replace import Replacements, Stream
from vm.egress.interceptor.substitute import Watch

MAX_WHOLE = 16 * 2**20
"""Bytes that a body which is looked through as a whole may become."""


class RequestBody:
    """A request's body; `found` is told which placeholders are in it. An empty piece ends it."""

    def __init__(self, replacements: Replacements, found: Callable[[set[str]], None]) -> None:
        self.replacements = replacements
        self.decoding = Decoding("")
        self._found = found
        self._watch = Watch()
        self._stream = Stream(replacements)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What goes on. Undecodable."""
        if not data:
            self.decoding.end()
            self._look(b"", last=True)
            if rest := self._stream.end():
                yield rest
            return
        for piece in self.decoding.feed(data):
            self._look(piece)
            if out := self._stream.feed(piece):
                yield out

    def _look(self, data: bytes, *, last: bool = False) -> None:
        before = len(self._watch.found)
        self._watch.feed(data, last=last)
        if len(self._watch.found) > before:
            self._found(set(self._watch.found))


class AnswerBody:
    """An answer's body; `grpc` says that its messages count their own bytes. An empty piece ends it."""

    def __init__(self, replacements: Replacements, decoding: Decoding, *, grpc: bool) -> None:
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
            if out := self._stream.feed(piece):
                yield out


def whole(body: RequestBody | AnswerBody, data: bytes) -> bytes:
    """All of a body that is here as a whole. Undecodable also where it becomes more than `MAX_WHOLE`."""
    out = bytearray()
    for piece in (data, b""):
        for part in body.feed(piece):
            out += part
            if len(out) > MAX_WHOLE:
                raise Undecodable("it becomes too long")
    return bytes(out)
