"""Finds a kernel's own symbols in its ELF file, though that is stripped: the tables that it prints /proc/kallsyms from.

The layout is that of scripts/kallsyms.c since Linux 6.4 for 64 bits: count, names, markers, token table, token index,
offsets, base. None of it has a name in the file, so each is found by what it must look like and checked against the
others. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator

_TEXT_MAPPING = 0xFFFFFFFF80000000  # physical address 0 there: Documentation/arch/x86/x86_64/mm.rst
_DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
_TOKENS = 256
_EVERY = 256  # names between two markers
_LONGEST = _EVERY * 512  # bytes that 256 names can take at the most


class NoSymbols(Exception):
    """The file has no table of symbols that we can read."""


def symbols(kernel: bytes, wanted: Collection[str]) -> dict[str, int]:
    """The virtual addresses of the `wanted` symbols that the kernel has. NoSymbols."""
    tokens, table_at, index_at = _tokens(kernel)
    count, names_at = _names(kernel, table_at)
    offsets_at = index_at + 2 * _TOKENS
    base_at = _aligned(offsets_at + 4 * count)
    (base,) = struct.unpack_from("<Q", kernel, base_at)
    if base >> 40 != 0xFFFFFF:
        raise NoSymbols("the base of its symbols' addresses is no kernel address")
    found = {}
    for number, name in enumerate(_decoded(kernel, names_at, count, tokens)):
        if name in wanted:
            (offset,) = struct.unpack_from("<i", kernel, offsets_at + 4 * number)
            # What is not negative is an address within each processor's own data
            found[name] = offset if offset >= 0 else base - 1 - offset
    return found


def physical(address: int) -> int:
    """Where the kernel's own code and data lie in physical memory, if nothing moved them: no boot loader, no KASLR."""
    return address - _TEXT_MAPPING


def _tokens(kernel: bytes) -> tuple[list[bytes], int, int]:
    """The 256 pieces that names are made of, where their table begins, and where its index does."""
    at = -1
    while (at := kernel.find(b"\0" + _DIGITS, at + 1)) >= 0:
        start = at + 1
        for _ in range(ord("0")):
            start = kernel.rfind(b"\0", 0, start - 1) + 1
        start = _aligned(start)  # the first token follows padding, which looks like empty tokens
        tokens, end = [], start
        for _ in range(_TOKENS):
            stop = kernel.find(b"\0", end)
            tokens.append(kernel[end:stop])
            end = stop + 1
        index_at = _aligned(end)
        places = [0]
        for token in tokens[:-1]:
            places.append(places[-1] + len(token) + 1)
        if places[-1] < 2**16 and kernel[index_at : index_at + 2 * _TOKENS] == struct.pack(f"<{_TOKENS}H", *places):
            return tokens, start, index_at
    raise NoSymbols("it has no table of tokens")


def _names(kernel: bytes, table_at: int) -> tuple[int, int]:
    """How many names there are, and where they begin."""
    markers: list[int] = []
    at = table_at
    while not markers or markers[0] != 0:
        at -= 4
        (marker,) = struct.unpack_from("<I", kernel, at)
        if markers and marker >= markers[0]:
            raise NoSymbols("its markers are not in order")
        if markers or marker:  # padding
            markers.insert(0, marker)
    for place in range(at - 8 - markers[-1], at - 8 - markers[-1] - _LONGEST, -1):
        (count,) = struct.unpack_from("<I", kernel, place)
        if (len(markers) - 1) * _EVERY < count <= len(markers) * _EVERY and _fits(kernel, place + 8, markers, at):
            return count, place + 8
    raise NoSymbols("its names are not before their markers")


def _fits(kernel: bytes, names_at: int, markers: list[int], end: int) -> bool:
    """Whether names that begin there agree with the markers."""
    at = names_at
    for marker in markers:
        if at != names_at + marker:
            return False
        if marker == markers[-1]:
            return True
        for _ in range(_EVERY):
            length, first = _length(kernel, at)
            at = first + length
            if at > end:
                return False
    return False


def _length(kernel: bytes, at: int) -> tuple[int, int]:
    """How many tokens the name at that place has, and where they begin."""
    length = kernel[at]
    if length & 0x80:
        return (length & 0x7F) | kernel[at + 1] << 7, at + 2
    return length, at + 1


def _decoded(kernel: bytes, at: int, count: int, tokens: list[bytes]) -> Iterator[str]:
    for _ in range(count):
        length, first = _length(kernel, at)
        at = first + length
        # Its first letter is the symbol's kind
        yield b"".join([tokens[token] for token in kernel[first:at]])[1:].decode(errors="replace")


def _aligned(at: int) -> int:
    return (at + 7) & ~7
