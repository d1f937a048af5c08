"""The layers of running disks: a fork adds one, a merge takes some away, a sweep removes what nobody needs."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from vm.errors import VmError
from vm.libvirt import disks, domains
from vm.libvirt.connection import Connection
from vm.node.config import NodeConfig
from vm.node.lanes import Lanes
from vm.node.records import Names, Record
from vm.storage.images import image_find
from vm.storage.layout import LayerId, Layout
from vm.storage.qcow2 import layers_of, overlay_like

MAX_LAYERS = 6
"""Layers of one disk above which they are merged into the one that is written to."""
_LOOK = 0.2
_ASKING = 60.0


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

    async def writes_to(self, record: Record, serial: str, layer: LayerId) -> bool:
        """Whether the machine's disk of that serial (the root's: "") goes on in the layer; True where nobody knows.

        Too many layers are never wrong: an empty one shows what is below it.
        """
        name, disk = self._names.of(record.body), self._layout.disk(layer)
        with suppress(VmError):
            return disk == await self._lanes.run(
                name, lambda: disks.disk_file(self._conn, name, serial=serial), deadline=_ASKING
            )
        return disk.exists()

    @contextmanager
    def fresh(self) -> Iterator[LayerId]:
        """A layer that is no record's yet; once it is one's, leave."""
        layer = secrets.token_hex(16)
        self.being_made.add(layer)
        try:
            yield layer
        finally:
            self.being_made.discard(layer)

    async def over(self, layer: LayerId, *fresh: LayerId) -> None:
        """Make empty layers over one that is in use. HostFull."""

        def make() -> None:
            for one in fresh:
                overlay_like(self._layout.disk(one), backing=self._layout.disk(layer), owner=self._owner)

        await self._lanes.run(f"layer {fresh[0]}", make, deadline=_ASKING)
        self._lanes.forget(f"layer {fresh[0]}")

    def snapshot(
        self,
        record: Record,
        fresh: LayerId,
        memory: Path,
        others: Mapping[str, LayerId] | None = None,
        *,
        standing: bool = False,
    ) -> bool:
        """Write a running machine's memory to `memory`, and let its disk go on in `fresh`. Blocks; VmError.

        That, and `others` in which its volumes' disks go on, by their serials, are empty layers which are there
        already. On failure the machine goes on as it was, and there is no memory. False: there is none to go on with,
        but the disks go on in theirs; once more then, while it is `standing`.
        """
        paths = {serial: self._layout.disk(layer) for serial, layer in (others or {}).items()}
        overlay = self._layout.disk(fresh)
        try:
            good = domains.domain_snapshot(
                self._conn,
                self._names.of(record.body),
                memory=memory,
                overlay=overlay,
                others=paths,
                standing=standing,
            )
        except VmError:
            memory.unlink(missing_ok=True)
            raise
        if not good:
            memory.unlink(missing_ok=True)
        return good

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
                self._layout.seal(layer).unlink(missing_ok=True)

        await self._lanes.run("layers", remove, deadline=60)

    def _there(self) -> set[LayerId]:
        return {path.stem for path in self._layout.disks.glob("*.qcow2")}
