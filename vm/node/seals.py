"""Checksums of layers that nobody writes to any more: taken when they become so, verified when they are used.

The size and the time of the last change are looked at on every use; the content once in the life of a node, before the
use where that is quick, and beside it where it is not: what is found damaged then is refused from there on.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from vm.background import spawn
from vm.errors import VmError, VolumeDamaged
from vm.node.lanes import Lanes
from vm.node.records import write_whole
from vm.storage.layout import LayerId, Layout

log = logging.getLogger("atoll.node")

QUICK = 32 * 2**20
"""Bytes on disk up to which a layer is read before it is used: a tenth of a second."""
_READING = 1800.0
_LANE = "seals"


class Seals:
    """Seals layers and looks at seals. In the node's event loop; files are read in a lane of their own."""

    def __init__(self, layout: Layout, lanes: Lanes) -> None:
        self._layout = layout
        self._lanes = lanes
        self._verified: set[LayerId] = set()
        self._damaged: set[LayerId] = set()
        self._under_way: set[LayerId] = set()

    def seal(self, layers: Iterable[LayerId]) -> None:
        """Take the checksums of those that have none, beside the caller."""
        for layer in layers:
            if layer not in self._under_way and not self._layout.seal(layer).exists():
                self._under_way.add(layer)
                spawn(self._seal(layer), name=f"seal {layer}")

    async def require_whole(self, layers: Iterable[LayerId]) -> None:
        """Return if they are what they were, as far as is known by now. VolumeDamaged."""
        for layer in layers:
            if layer in self._damaged:
                raise VolumeDamaged(_WHAT)
            if layer in self._verified:
                continue
            if not self._layout.seal(layer).exists():
                self.seal([layer])
            elif _allocated(self._layout.disk(layer)) <= QUICK:
                await self._verify(layer)
            else:
                if await self._lanes.run("seals now", partial(self._changed, layer), deadline=30):
                    self._found(layer)
                if layer not in self._under_way:
                    self._under_way.add(layer)
                    spawn(self._verify_beside(layer), name=f"verify {layer}")

    async def require_unchanged(self, layers: Iterable[LayerId]) -> None:
        """The same of those that have a seal: layers of a machine's own that nothing was made of have none."""
        await self.require_whole([layer for layer in layers if self._layout.seal(layer).exists()])

    async def _seal(self, layer: LayerId) -> None:
        def take() -> None:
            disk = self._layout.disk(layer)
            before = disk.stat()
            digest = _digest(disk)
            seal = {"sha256": digest, "size": before.st_size, "mtime_ns": before.st_mtime_ns}
            write_whole(self._layout.seal(layer), seal)

        try:
            await self._lanes.run(_LANE, take, deadline=_READING)
            self._verified.add(layer)
        except FileNotFoundError:
            pass  # its last user is gone
        except (VmError, OSError) as error:
            log.warning("no checksum of layer %s yet: %s", layer, error)
        finally:
            self._under_way.discard(layer)

    async def _verify_beside(self, layer: LayerId) -> None:
        try:
            with suppress(VmError, FileNotFoundError):
                await self._verify(layer)
        finally:
            self._under_way.discard(layer)

    async def _verify(self, layer: LayerId) -> None:
        def look() -> bool:
            return self._changed(layer) or _digest(self._layout.disk(layer)) != self._read(layer).get("sha256")

        if await self._lanes.run(_LANE, look, deadline=_READING):
            self._found(layer)
        self._verified.add(layer)

    def _found(self, layer: LayerId) -> None:
        self._damaged.add(layer)
        log.error("layer %s is not what it was when its checksum was taken: nothing is started from it", layer)
        raise VolumeDamaged(_WHAT)

    def _changed(self, layer: LayerId) -> bool:
        seal, now = self._read(layer), self._layout.disk(layer).stat()
        return (seal.get("size"), seal.get("mtime_ns")) != (now.st_size, now.st_mtime_ns)

    def _read(self, layer: LayerId) -> dict[str, object]:
        try:
            found = json.loads(self._layout.seal(layer).read_text())
            return found if isinstance(found, dict) else {}
        except ValueError:
            return {}


_WHAT = "its data on the host's disk is not what was written there: a checksum does not fit"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512
