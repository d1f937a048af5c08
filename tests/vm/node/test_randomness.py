"""Another key for a copied kernel: what is written, and when nothing is."""

from __future__ import annotations

import struct

import pytest

from vm.errors import HypervisorError
from vm.node.randomness import renew
from vm.storage.images import RandomState

STATE = RandomState(base=0x100, vdso=0x400)
JIFFIES = 4_294_900_000


class Memory:
    """A guest's, of 4 KiB."""

    def __init__(self, *words: int, vdso: int, ready: int = 1) -> None:
        self.data = bytearray(4096)
        self.write(STATE.base, b"k" * 32 + struct.pack(f"<{len(words)}Q", *words))
        self.write(STATE.vdso, struct.pack("<QB", vdso, ready))

    def read(self, address: int, count: int) -> bytes:
        return bytes(self.data[address : address + count])

    def write(self, address: int, data: bytes) -> None:
        self.data[address : address + len(data)] = data


@pytest.mark.parametrize("words", [(7, 0, 0), (JIFFIES, 7, 0)], ids=["no age", "with its age"])
def test_key_and_generations_are_new(words: tuple[int, ...]) -> None:
    """Both generations go up by one, and stay one apart; nothing else is touched."""
    memory = Memory(*words, vdso=8)
    renew(memory, STATE)
    assert memory.read(STATE.base, 32) != b"k" * 32
    expected = tuple(8 if word == 7 else word for word in words)
    assert struct.unpack("<3Q", memory.read(STATE.base + 32, 24)) == expected
    assert struct.unpack("<QB", memory.read(STATE.vdso, 9)) == (9, 1)


def test_two_copies_get_two_keys() -> None:
    """As two forks of one memory."""
    one, other = Memory(7, vdso=8), Memory(7, vdso=8)
    renew(one, STATE)
    renew(other, STATE)
    assert one.read(STATE.base, 32) != other.read(STATE.base, 32)


@pytest.mark.parametrize(
    "memory",
    [Memory(6, vdso=8), Memory(JIFFIES, 3, vdso=8), Memory(7, vdso=8, ready=0), Memory(0, vdso=0)],
    ids=["apart", "apart, with its age", "not seeded", "another kernel"],
)
def test_a_memory_that_looks_otherwise_is_left_alone(memory: Memory) -> None:
    """A wrong address must not be written to."""
    before = bytes(memory.data)
    with pytest.raises(HypervisorError, match="not where they should be"):
        renew(memory, STATE)
    assert memory.data == before
