"""Takes the uncompressed ELF kernel out of a bzImage; pure but for the external programs that some formats need."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import subprocess
import zlib

_SETUP_SECTORS = 0x1F1
_MAGIC = 0x202
_PAYLOAD_OFFSET = 0x248


class NotAKernel(Exception):
    """The file is no bzImage with a payload that we can unpack."""


def extract(image: bytes) -> bytes:
    """The ELF file inside `image`. Raises NotAKernel."""
    if len(image) < 0x260 or image[_MAGIC : _MAGIC + 4] != b"HdrS":
        raise NotAKernel("no boot header")
    start = (image[_SETUP_SECTORS] or 4) * 512 + 512
    offset, length = struct.unpack_from("<II", image, _PAYLOAD_OFFSET)
    # The payload ends with its unpacked size, which is none of the compressor's business
    payload = image[start + offset : start + offset + length - 4]
    kernel = _decompress(payload)
    if not kernel.startswith(b"\x7fELF"):
        raise NotAKernel("the payload is no ELF file")
    return kernel


def _decompress(payload: bytes) -> bytes:
    try:
        if payload.startswith(b"\x1f\x8b"):
            return gzip.decompress(payload)
        if payload.startswith(b"\xfd7zXZ\0"):
            return lzma.decompress(payload)
        if payload.startswith(b"BZh"):
            return bz2.decompress(payload)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise NotAKernel(f"damaged payload: {error}") from error
    programs = {b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4"}
    program = programs.get(payload[:4])
    if program is None:
        raise NotAKernel(f"unknown compression {payload[:6].hex()}")
    with subprocess.Popen(
        [program, "-dc"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        kernel, said = process.communicate(payload)
    if process.returncode:
        raise NotAKernel(f"{program}: {said.decode(errors='replace').strip()}")
    return kernel
