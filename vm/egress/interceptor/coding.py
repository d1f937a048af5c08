"""Undoes the content codings of a stream, piece by piece: gzip, deflate, br and zstd, also several of them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

PIECE = 65_536
SLACK = 4 * 2**20
MOST = 200
"""How many times its size a stream may expand, beyond the first `SLACK` bytes."""


class Undecodable(ValueError):
    """The stream is not what it says it is, or becomes too much; the message is for people."""


class _Decoder(Protocol):
    def feed(self, data: bytes) -> Iterator[bytes]: ...

    def end(self) -> None: ...


class _Zlib:
    """gzip (of several members, too) and deflate (which some servers send without its wrapping)."""

    def __init__(self, wbits: int) -> None:
        self._wbits = wbits
        self._inner = zlib.decompressobj(wbits)
        self._began = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        while True:
            if self._inner.eof:
                if not data:
                    return
                self._inner = zlib.decompressobj(self._wbits)
            try:
                piece = self._inner.decompress(data, PIECE)
            except zlib.error:
                if self._wbits != zlib.MAX_WBITS or self._began:
                    raise
                self._wbits = -zlib.MAX_WBITS
                self._inner = zlib.decompressobj(self._wbits)
                piece = self._inner.decompress(data, PIECE)
            self._began = self._began or bool(data)
            data = self._inner.unused_data if self._inner.eof else self._inner.unconsumed_tail
            if piece:
                yield piece
            # A piece that is full may have more behind it, even where all input was taken
            if not data and len(piece) < PIECE:
                return

    def end(self) -> None:
        if self._began and not self._inner.eof:
            raise Undecodable("it ends too early")


class _Brotli:
    def __init__(self) -> None:
        import brotli

        self._inner: Any = brotli.Decompressor()
        self._began = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._began = True
        if self._inner.is_finished():
            raise Undecodable("there is more after its end")
        # It says that it takes more while it has more to give
        while (piece := self._inner.process(data, output_buffer_limit=PIECE)) or not self._inner.can_accept_more_data():
            data = b""
            yield piece

    def end(self) -> None:
        if self._began and not self._inner.is_finished():
            raise Undecodable("it ends too early")


class _Zstd:
    def __init__(self) -> None:
        self._make = _zstd_decompressor()
        self._inner = self._make()
        self._began = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._began = True
        while True:
            if self._inner.eof:
                data = self._inner.unused_data or data
                if not data:
                    return
                self._inner = self._make()
            if piece := self._inner.decompress(data, PIECE):
                yield piece
            data = b""
            if self._inner.eof:
                if not (data := self._inner.unused_data):
                    return
            elif self._inner.needs_input:
                return

    def end(self) -> None:
        if self._began and not self._inner.eof:
            raise Undecodable("it ends too early")


def _zstd_decompressor() -> Callable[[], Any]:
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        from backports import zstd  # type: ignore[import-not-found, unused-ignore]
    # What needs a larger window than browsers take would be held in memory for every stream
    return lambda: zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: 23})


_KNOWN: dict[str, Callable[[], _Decoder]] = {
    "gzip": lambda: _Zlib(zlib.MAX_WBITS | 16),
    "x-gzip": lambda: _Zlib(zlib.MAX_WBITS | 16),
    "deflate": lambda: _Zlib(zlib.MAX_WBITS),
    "br": _Brotli,
    "zstd": _Zstd,
}


class Decoding:
    """A stream whose codings are undone. Undecodable also for a coding that is not known."""

    def __init__(self, content_encoding: str) -> None:
        names = [name.strip().lower() for name in content_encoding.split(",")]
        names = [name for name in names if name not in ("", "identity")]
        if len(names) > 3 or any(name not in _KNOWN for name in names):
            raise Undecodable(f"its content coding {content_encoding[:60]!r} cannot be undone")
        self._stages = [_KNOWN[name]() for name in reversed(names)]
        self._got = 0
        self._made = 0

    def __bool__(self) -> bool:
        return bool(self._stages)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What these bytes become, in pieces of at most PIECE. Undecodable."""
        self._got += len(data)
        try:
            for piece in self._through(0, data):
                self._made += len(piece)
                if self._made > SLACK + MOST * self._got:
                    raise Undecodable("it expands to much more than it is")
                yield piece
        except Undecodable:
            raise
        except Exception as error:  # each library has errors of its own
            raise Undecodable("it is not what its content coding says") from error

    def end(self) -> None:
        """Undecodable if it ended too early."""
        for stage in self._stages:
            stage.end()

    def _through(self, number: int, data: bytes) -> Iterator[bytes]:
        if number == len(self._stages):
            yield data
            return
        for piece in self._stages[number].feed(data):
            yield from self._through(number + 1, piece)
