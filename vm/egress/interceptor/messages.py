"""Watches the framing of gRPC: a message that is compressed could not be looked through. Pure."""

from __future__ import annotations


class Compressed(ValueError):
    """A message is compressed, although nobody said it could be."""


class GrpcMessages:
    """One direction of one call. Holds nothing but where it is."""

    def __init__(self) -> None:
        self._left = 0
        self._head = bytearray()

    def feed(self, data: bytes) -> None:
        """Look at these bytes. Compressed."""
        view = memoryview(data)
        while view:
            if self._left:
                taken = min(self._left, len(view))
                self._left -= taken
                view = view[taken:]
                continue
            missing = 5 - len(self._head)
            self._head += view[:missing]
            view = view[missing:]
            if self._head[0] & 1:
                raise Compressed("a gRPC message is compressed, so it cannot be looked through")
            if len(self._head) == 5:
                self._left = int.from_bytes(self._head[1:])
                self._head.clear()
