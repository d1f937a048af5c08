"""Replaces in the messages of one direction of a WebSocket, frame by frame, and makes new frames of them. Pure."""

from __future__ import annotations

import os
from collections.abc import Callable

from vm.egress.interceptor.replace import Replacements, Stream
from vm.egress.interceptor.substitute import Watch

_CONTINUATION, _CONTROL = 0x0, 0x8
_MAX_CONTROL = 125


class BadFrame(ValueError):
    """It is no frame that could be looked through; the message is for people."""


class Frames:
    """One direction: `masked` from client to server. Holds no more than the header of a frame, and control frames."""

    def __init__(
        self,
        *,
        masked: bool,
        messages: Callable[[], Replacements],
        control: Callable[[], Replacements],
        found: Callable[[set[str]], None] = lambda found: None,
        mask: Callable[[], bytes] = lambda: os.urandom(4),
    ) -> None:
        """What is replaced at the time; `control` in control frames, which may not become longer: it keeps lengths.

        `found` is told which placeholders are in either.
        """
        self._masked = masked
        self._messages = messages
        self._control = control
        self._found = found
        self._watch = Watch(found)
        self._mask = mask
        self._buffer = bytearray()
        self._stream: Stream | None = None
        self._opcode = 0  # of the next frame that is made of the message
        self._final = False
        self._left = 0  # of the payload of the frame that is being read
        self._in_frame = False
        self._key = b""
        self._key_place = 0

    def feed(self, data: bytes) -> bytes:
        """The frames that can be passed on after these bytes. BadFrame."""
        self._buffer += data
        out = bytearray()
        while True:
            if self._in_frame:
                if not self._payload(out):
                    return bytes(out)
            elif not self._header(out):
                return bytes(out)

    def _header(self, out: bytearray) -> bool:
        buffer = self._buffer
        if len(buffer) < 2:
            return False
        final, opcode, length = bool(buffer[0] & 0x80), buffer[0] & 0x0F, buffer[1] & 0x7F
        if buffer[0] & 0x70:
            raise BadFrame("it uses an extension that was not agreed on")
        if bool(buffer[1] & 0x80) is not self._masked:
            raise BadFrame("it is masked where it must not be, or not where it must")
        wide = {126: 2, 127: 8}.get(length, 0)
        size = 2 + wide + (4 if self._masked else 0)
        if len(buffer) < size:
            return False
        if wide:
            length = int.from_bytes(buffer[2 : 2 + wide])
        if length >> 63:
            raise BadFrame("it is longer than a frame can be")
        self._key, self._key_place = bytes(buffer[size - 4 : size]) if self._masked else b"", 0
        if opcode & _CONTROL:
            if length > _MAX_CONTROL or not final:
                raise BadFrame("its control frame is too long")
            if len(buffer) < size + length:
                return False
            payload = self._unmasked(bytes(buffer[size : size + length]))
            del buffer[: size + length]
            Watch(self._found).feed(payload, last=True)
            self._emit(out, opcode, self._control().whole(payload), final=True)
            return True
        if (opcode == _CONTINUATION) is (self._stream is None):
            raise BadFrame("its messages are mixed up")
        del buffer[:size]
        if opcode != _CONTINUATION:
            self._stream, self._opcode = Stream(self._messages), opcode
        self._final, self._left, self._in_frame = final, length, True
        return True

    def _payload(self, out: bytearray) -> bool:
        assert self._stream is not None  # noqa: S101 (for the type checker)
        taken = bytes(self._buffer[: self._left])
        del self._buffer[: len(taken)]
        self._left -= len(taken)
        plain = self._unmasked(taken)
        ends = self._left == 0 and self._final
        self._watch.feed(plain, last=ends)
        piece = self._stream.feed(plain) if plain else b""
        if ends:
            piece += self._stream.end()
        if piece or ends:
            self._emit(out, self._opcode, piece, final=ends)
            self._opcode = _CONTINUATION
        if self._left:
            return False
        self._in_frame = False
        if ends:
            self._stream = None
        return True

    def _unmasked(self, data: bytes) -> bytes:
        if not self._masked or not data:
            return data
        plain = _xor(data, self._key[self._key_place :] + self._key[: self._key_place])
        self._key_place = (self._key_place + len(data)) % 4
        return plain

    def _emit(self, out: bytearray, opcode: int, payload: bytes, *, final: bool) -> None:
        out.append(opcode | (0x80 if final else 0))
        masked, length = 0x80 if self._masked else 0, len(payload)
        if length < 126:
            out.append(masked | length)
        elif length < 65_536:
            out.append(masked | 126)
            out += length.to_bytes(2)
        else:
            out.append(masked | 127)
            out += length.to_bytes(8)
        if self._masked:
            key = self._mask()
            out += key + _xor(payload, key)
        else:
            out += payload


def _xor(data: bytes, key: bytes) -> bytes:
    whole = (key * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data) ^ int.from_bytes(whole)).to_bytes(len(data))
