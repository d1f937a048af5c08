"""Gives the kernel of a machine that was copied another key for its random numbers, before its processor runs at all.

The guest's kernel notices by its generation id that it is a copy, but some milliseconds late, and its programs run
meanwhile: they and the original's would draw the same. So the key is written into the paused guest's memory, where
drivers/char/random.c (`base_crng`) and lib/vdso/getrandom.c (`struct vdso_rng_data`) have it: whoever draws next sees
another generation, and takes the key that only this copy has.
"""

from __future__ import annotations

import secrets
import struct
from typing import Protocol

from vm.errors import HypervisorError
from vm.storage.images import RandomState

_KEY = 32  # bytes; ChaCha20's
_WORDS = 3  # after the key: the generation is the first word or, where a kernel notes the key's age, the second


class PhysicalMemory(Protocol):
    """What of `vm.libvirt.guest_memory.GuestMemory` is used here."""

    def read(self, address: int, count: int, /) -> bytes:
        """`count` bytes from there on."""

    def write(self, address: int, data: bytes, /) -> None:
        """Put them there."""


def renew(memory: PhysicalMemory, state: RandomState) -> None:
    """Give it a fresh key as the kernel's own reseeding does. HypervisorError if this is not what the memory holds."""
    generation, ready = struct.unpack("<QB", memory.read(state.vdso, 9))
    words = struct.unpack(f"<{_WORDS}Q", memory.read(state.base + _KEY, 8 * _WORDS))
    # 0 means in vdso_rng_data what ULONG_MAX means in base_crng, and so each is one more there
    if ready != 1 or generation - 1 not in words[:2]:
        raise HypervisorError("its kernel's random numbers are not where they should be")
    memory.write(state.base, secrets.token_bytes(_KEY))
    memory.write(state.base + _KEY + 8 * words.index(generation - 1), struct.pack("<Q", generation))
    memory.write(state.vdso, struct.pack("<Q", generation + 1))
