"""The layers of running disks: a fork adds one, a merge takes some away, a sweep removes what nobody needs."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vm.errors import VmError
from vm.libvirt import domains
from vm.libvirt.connection import Connection
from vm.node.config import NodeConfig
from vm.node.lanes import Lanes
from vm.node.records import Names, Record
from vm.storage.images import image_find
from vm.storage.layout import LayerId, Layout
from vm.storage.qcow2 import layers_of, overlay_create

MAX_LAYERS = 6
"""Layers of one disk above which they are merged into the one that is written to."""
_LOOK = 0.2


class Layers:
    """What is done to layers while they are in use. What a child needs is never written to, nor removed."""

    def __init__(
        self,
        config: NodeConfig,
        layout: Layout,
        names: Names,
        lanes: Lanes,
        conn: Connection,
        owner: tuple[int, int],
    ) -> None:
        self._config = config
        self._layout = layout
        self._names = names
        self._lanes = lanes
        self._conn = conn
        self._owner = owner
        self.being_made: set[LayerId] = set()
        self.frozen = False  # some record cannot be read: what it names is not known, and so nothing is waste

    @contextmanager
    def fresh(self) -> Iterator[LayerId]:
        """A layer that is no record's yet; once it is one's, leave."""
        layer = secrets.token_hex(16)
        self.being_made.add(layer)
        try:
            yield layer
        finally:
            self.being_made.discard(layer)

    def snapshot(self, record: Record, fresh: LayerId, memory: Path) -> None:
        """Write a running machine's memory to `memory`, and let its disk go on in `fresh`. Blocks; HostFull.

        On failure the machine goes on as it was, and nothing is left.
        """
        name, overlay = self._names.of(record.body), self._layout.disk(fresh)
        base = self._layout.disk(record.disks[0])
        overlay_create(overlay, backing=base, backing_format="qcow2", size_gib=record.spec.disk_gib, owner=self._owner)
        try:
            domains.domain_snapshot(self._conn, name, memory=memory, overlay=overlay)
        except VmError:
            memory.unlink(missing_ok=True)
            if domains.domain_disk(self._conn, name) != overlay:
                overlay.unlink(missing_ok=True)
            raise

    async def merge(self, record: Record) -> None:
        """Copy what a running disk's lower layers hold into the one that is written to, beside the guest."""
        name, disk = self._names.of(record.body), self._layout.disk(record.disks[0])
        image = image_find(self._config.image_cache, record.image).root
        await self._lanes.run(name, lambda: domains.domain_pull(self._conn, name, base=image), deadline=30)
        while await self._pulling(name):  # noqa: ASYNC110 (a thread of libvirt's knows, and is asked)
            await asyncio.sleep(_LOOK)
        layers = await self._lanes.run(name, lambda: layers_of(disk), deadline=30)
        record.disks = [path.stem for path in layers[:-1]]

    async def _pulling(self, name: str) -> bool:
        return await self._lanes.run(name, lambda: domains.domain_pulling(self._conn, name), deadline=30)

    async def sweep(self, needed: Callable[[], set[LayerId]]) -> None:
        """Remove the layers that nobody needs any more; `needed` says which are, and is asked in the event loop."""
        if self.frozen:
            return
        there = await self._lanes.run("layers", self._there, deadline=60)
        # Asked after the look: what is made from now on was not seen, and what was seen has its owner by now
        waste = there - needed() - self.being_made

        def remove() -> None:
            for layer in waste:
                self._layout.disk(layer).unlink(missing_ok=True)

        await self._lanes.run("layers", remove, deadline=60)

    def _there(self) -> set[LayerId]:
        return {path.stem for path in self._layout.disks.glob("*.qcow2")}
