"""libvirt's save images: a header with the domain's XML before QEMU's stream. Pure but for `rewrite_in_place`, `clone`.

Layout (libvirt: src/qemu/qemu_saveimage.h): 16 bytes `LibvirtQemudSave`, five little-endian u32 (version 2, data_len,
was_running, compressed, cookie_offset), 14 reserved u32; then data_len bytes that hold the XML with its NUL and, from
cookie_offset on, a cookie with its NUL; then QEMU's migration stream. While an image is being written its magic is
`LibvirtQemudPart`, so a half-written one is told from a whole one.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, replace
from pathlib import Path

_HEADER = struct.Struct("<16s5I14I")
_MAGIC = b"LibvirtQemudSave"
_VERSION = 2
_LONGEST = 1_048_576  # bytes of XML and cookie: a few thousand are usual
_PIECE = 16 * 2**20


class NotAnImage(ValueError):
    """The file is no complete save image of a version we know."""


@dataclass(frozen=True, slots=True)
class SaveImage:
    """The header of an image. `stream_at` is the offset of QEMU's stream in the file it was read from."""

    xml: str
    cookie: bytes
    was_running: bool
    stream_at: int


def parse(head: bytes) -> SaveImage:
    """The header in the first bytes of a file. NotAnImage."""
    if len(head) < _HEADER.size:
        raise NotAnImage("too short for a save image")
    magic, version, data_len, was_running, compressed, cookie_at, *_ = _HEADER.unpack_from(head)
    if magic != _MAGIC:
        raise NotAnImage("not a save image, or one that was not finished")
    if version != _VERSION or compressed != 0:
        raise NotAnImage(f"a save image of version {version}, compression {compressed}")
    if not 0 < data_len <= _LONGEST or cookie_at > data_len or len(head) < _HEADER.size + data_len:
        raise NotAnImage("the lengths in its header are impossible")
    data = head[_HEADER.size : _HEADER.size + data_len]
    xml, cookie = (data[:cookie_at], data[cookie_at:]) if cookie_at else (data, b"")
    try:
        text = xml.split(b"\0", 1)[0].decode()
    except UnicodeDecodeError as error:
        raise NotAnImage("its XML is not text") from error
    return SaveImage(text, cookie.split(b"\0", 1)[0], bool(was_running), _HEADER.size + data_len)


def header(image: SaveImage, *, room: int = 0) -> bytes:
    """The header's bytes, filled up to `room` bytes where it is shorter. ValueError if it does not fit into `room`.

    `was_running` decides only where a restore is not told whether to leave the domain paused.
    """
    xml = image.xml.encode() + b"\0"
    cookie = image.cookie + b"\0" if image.cookie else b""
    gap = b""
    if room:
        missing = room - _HEADER.size - len(xml) - len(cookie)
        if missing < 0:
            raise ValueError(f"the header is {-missing} bytes too long for its place")
        gap = bytes(missing)
    data = xml + gap + cookie
    cookie_at = len(xml) + len(gap) if cookie else 0
    return _HEADER.pack(_MAGIC, _VERSION, len(data), image.was_running, 0, cookie_at, *[0] * 14) + data


def read(path: Path) -> SaveImage:
    """The header of the image at `path`. NotAnImage, FileNotFoundError."""
    with path.open("rb") as file:
        return parse(file.read(_HEADER.size + _LONGEST))


def rewrite_in_place(path: Path, xml: str) -> bool:
    """Give the image other XML without moving its stream; False, and nothing is changed, if it is too long for that."""
    image = read(path)
    try:
        fresh = header(replace(image, xml=xml), room=image.stream_at)
    except ValueError:
        return False
    with path.open("r+b") as file:
        file.write(fresh)
    return True


def clone(source: Path, target: Path, xml: str, *, spare: int = 0) -> None:
    """A copy of the image with other XML; the kernel moves the stream. OSError if there is no room for it.

    `spare` bytes are left free in its header, so that XML longer than this can be put there in place.
    """
    image = read(source)
    head = header(replace(image, xml=xml))
    # Nobody else's to read, and never through a link that somebody else laid
    private = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with source.open("rb") as there, os.fdopen(private, "wb") as here:
        here.write(header(replace(image, xml=xml), room=len(head) + spare) if spare else head)
        here.flush()
        at, end = image.stream_at, os.fstat(there.fileno()).st_size
        while at < end:
            moved = os.sendfile(here.fileno(), there.fileno(), at, min(_PIECE, end - at))
            if moved == 0:
                raise OSError(f"{source} became shorter while it was read")
            at += moved
