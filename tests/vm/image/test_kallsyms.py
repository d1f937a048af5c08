"""Symbols of a kernel: what is none is refused. That they are right is seen in tests/live/test_forks.py."""

from __future__ import annotations

import pytest

from vm.image.kallsyms import NoSymbols, physical, symbols


@pytest.mark.parametrize(
    "kernel",
    [
        b"",
        b"\x7fELF" + bytes(10_000),
        # Tokens without the index that belongs to them
        bytes(64) + b"".join(b"%c\0" % (code % 128 or 1) for code in range(256)) + bytes(1024),
    ],
)
def test_a_file_without_a_table_is_refused(kernel: bytes) -> None:
    """Whatever looks like a part of it only."""
    with pytest.raises(NoSymbols):
        symbols(kernel, ["base_crng"])


def test_the_kernels_data_lies_at_the_bottom_of_memory() -> None:
    """The mapping of its text begins at physical address 0."""
    assert physical(0xFFFFFFFF81000000) == 0x1000000
