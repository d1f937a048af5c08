"""Bytes that come from somewhere, read by heads and pieces: what was read too far is put back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ide.gateway.http1 import MAX_HEAD, BadMessage

PIECE = 131_072


class Source:
    """Reads from `read(limit)`, which gives nothing at the end."""

    def __init__(self, read: Callable[[int], Awaitable[bytes]]) -> None:
        self._read = read
        self._held = b""

    async def head(self) -> bytes | None:
        """A head, with the empty line; None at the end. BadMessage for one that is too long or breaks off."""
        while (end := self._held.find(b"\r\n\r\n")) < 0:
            if len(self._held) > MAX_HEAD:
                raise BadMessage("the head is too long", 431)
            piece = await self._read(PIECE)
            if not piece:
                if self._held:
                    raise BadMessage("the head broke off")
                return None
            # Empty lines before a request are passed over (RFC 9112, section 2.2)
            self._held = self._held + piece if self._held else piece.lstrip(b"\r\n")
        head, self._held = self._held[: end + 4], self._held[end + 4 :]
        if len(head) > MAX_HEAD:
            raise BadMessage("the head is too long", 431)
        return head

    async def piece(self, limit: int = PIECE) -> bytes:
        """Up to `limit` bytes; empty at the end."""
        if self._held:
            piece, self._held = self._held[:limit], self._held[limit:]
            return piece
        return await self._read(limit)

    @property
    def holds(self) -> bool:
        """Whether a piece is there already."""
        return bool(self._held)

    def put_back(self, data: bytes) -> None:
        """These bytes were not wanted."""
        self._held = data + self._held
