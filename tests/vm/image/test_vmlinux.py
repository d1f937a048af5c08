from __future__ import annotations

import gzip
import lzma
import struct
from collections.abc import Callable

import pytest

from vm.image.vmlinux import NotAKernel, extract

ELF = b"\x7fELF" + bytes(range(256)) * 20


def bz_image(payload: bytes) -> bytes:
    setup = bytearray(1024)
    setup[0x1F1] = 1
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", setup, 0x248, 16, len(payload) + 4)
    return bytes(setup) + bytes(16) + payload + len(ELF).to_bytes(4, "little")


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
def test_the_kernel_is_unpacked(compress: Callable[[bytes], bytes]) -> None:
    """The ELF file inside comes out, whatever Debian packed it with."""
    assert extract(bz_image(compress(ELF))) == ELF


@pytest.mark.parametrize(
    "image", [b"", b"MZ" * 1000, bz_image(b"unknown"), bz_image(gzip.compress(b"no elf")), bz_image(b"\x1f\x8bbroken")]
)
def test_what_is_no_kernel_is_refused(image: bytes) -> None:
    """Anything else is refused, not guessed at."""
    with pytest.raises(NotAKernel):
        extract(image)
