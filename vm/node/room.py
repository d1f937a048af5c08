"""Whether the host has room for one more machine, and what the pool gives up for it."""

from __future__ import annotations

import shutil
from pathlib import Path

from vm.api import Origin, StopReason
from vm.errors import HostFull
from vm.node.admission import lacking_mib
from vm.node.config import NodeConfig
from vm.node.hostinfo import memory_available, memory_total
from vm.node.pool import Pool
from vm.node.records import Record
from vm.node.roster import RUNNING, Roster
from vm.storage.layout import Layout

# Ours and libvirt's; a path may have the bare word in it
_OF_MEMORY = ("MiB of memory", "no memory for", "room in memory", "Cannot allocate memory", "guest memory")


class Room:
    """The host's memory and disk, as far as machines may have them."""

    def __init__(self, config: NodeConfig, layout: Layout, scratch: Path, roster: Roster, pool: Pool) -> None:
        self._config = config
        self._layout = layout
        self._scratch = scratch
        self._roster = roster
        self._pool = pool

    async def make(self, record: Record, certain: int | None = None) -> None:
        """Return if the host has room for one more such machine, taking it from the pool if need be. HostFull.

        `certain` MiB it takes at once: where nothing is said, what it is restored from.
        """
        certain = self._saved_mib(record) if certain is None else certain
        free = shutil.disk_usage(self._layout.machines).free
        if free < self._config.disk_reserve_mib * 2**20:
            raise HostFull(f"only {free // 2**20} MiB are free on the disk of {self._layout.machines}")
        if self._lacking_mib(record, certain) > 0 and self._pool.ready:
            await self._pool.give_back(self._lacking_mib(record, certain))
        if self._lacking_mib(record, certain) > 0:
            taken = sum(machine.record.memory_mib for machine in self._roster.with_memory())
            raise HostFull(f"{taken} MiB of memory are given to machines already, {record.memory_mib} more do not fit")

    async def make_free(self, mib: int) -> None:
        """Return if so many MiB of the host's memory are free beside what is kept free. HostFull."""

        def lacking() -> int:
            return mib + self._config.kept_free_mib - memory_available() // 2**20

        if lacking() > 0 and self._pool.ready:
            await self._pool.give_back(lacking())
        if lacking() > 0:
            raise HostFull(f"no memory for a copy of {mib} MiB: {lacking()} MiB too little are free")

    def _saved_mib(self, record: Record) -> int:
        images = {
            Origin.RESUME: self._layout.memory(record.machine),
            Origin.FORK: self._scratch / f"{record.body}.save",
        }
        try:
            return images[record.origin].stat().st_size // 2**20
        except (KeyError, OSError):
            return 0

    def _lacking_mib(self, record: Record, certain: int) -> int:
        with_memory = self._roster.with_memory()
        return lacking_mib(
            wanted=record.memory_mib,
            given=sum(machine.record.memory_mib for machine in with_memory) + self._pool.committed_mib,
            coming=sum(m.record.memory_mib for m in with_memory if m.record.state not in RUNNING),
            reserve=self._config.kept_free_mib,
            total=memory_total() // 2**20,
            available=memory_available() // 2**20,
            certain=certain,
        )


def reason_of_full(error: HostFull) -> StopReason:
    """Whether it is memory or disk that a full host has none of."""
    return StopReason.NO_CAPACITY if any(words in error.detail for words in _OF_MEMORY) else StopReason.DISK_FULL
