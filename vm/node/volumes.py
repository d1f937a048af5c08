"""The volumes and snapshots of one node: a record each, over layers that lie beside those of root disks.

A volume writes to its first layer; a snapshot's layers are written to by nobody. Each record names all of its layers,
so that none needs another's: what a base was made of stays for as long as something made from it is there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vm.api import SYSTEM, MachineId, VolumeId, VolumeInfo, VolumeMount
from vm.errors import HypervisorError, NotBootable, VmError, VolumeBusy, VolumeGone
from vm.node.config import NodeConfig
from vm.node.lanes import Lanes
from vm.node.layers import MAX_LAYERS, Layers
from vm.node.records import write_whole
from vm.node.seals import Seals
from vm.storage.images import image_find
from vm.storage.layout import LayerId, Layout
from vm.storage.qcow2 import sync, volume_empty, volume_merge, volume_over, volume_resize

log = logging.getLogger("atoll.node")

CAPACITY = (64 * 2**20, 4 * 2**40)
"""Bytes that a volume may have."""
_VOLUME = re.compile(r"[0-9a-f]{32}")
_BLOCK = 4096
_MAKING = 60.0
_MERGING = 3600.0


@dataclass(slots=True)
class Volume:
    """What is written down of one. `layers`: the one it writes to first; `image`: what lies below the last, or "".

    `made` is when, in epoch seconds.
    """

    volume: VolumeId
    capacity: int
    layers: list[LayerId]
    image: str = ""
    frozen: bool = False
    made: float = field(default_factory=time.time)

    def save(self, layout: Layout) -> None:
        """Write it down so that it outlives a loss of power. HostFull; blocks."""
        write_whole(layout.volume(self.volume), asdict(self))
        sync([layout.volumes])


class Volumes:
    """What the verbs about volumes do. Runs in the node's event loop; what blocks goes through the lanes.

    `users` says which machines that are not STOPPED use a volume.
    """

    def __init__(
        self,
        config: NodeConfig,
        layout: Layout,
        lanes: Lanes,
        layers: Layers,
        owner: tuple[int, int],
        users: Callable[[VolumeId], Sequence[MachineId]],
        needed: Callable[[], set[LayerId]],
    ) -> None:
        self._config = config
        self._layout = layout
        self._lanes = lanes
        self._layers = layers
        self._owner = owner
        self._users = users
        self._seals = Seals(layout, lanes)
        self._needed = needed
        self._known: dict[VolumeId, Volume] = {}
        self._locks: dict[VolumeId, asyncio.Lock] = {}
        self._kept_long: set[VolumeId] = set()
        self.removed: Callable[[VolumeId], None] = lambda volume: None

    def load(self) -> None:
        """Read what is written down, before anything else of the node looks at layers. Blocks."""
        self._layout.volumes.mkdir(mode=0o700, exist_ok=True)
        for path in self._layout.volumes.glob("*.new"):
            path.unlink()
        for path in sorted(self._layout.volumes.glob("*.json")):
            try:
                volume = volume_from_json(json.loads(path.read_text()))
                self._known[volume.volume] = volume
            except (ValueError, TypeError, KeyError, OSError) as error:
                # It may be somebody's work: a person must look, and until then no layer is waste
                log.error("volume %s is left alone, and so is every layer: %s", path.stem, error)
                self._layers.frozen = True

    def layers(self) -> set[LayerId]:
        """Every layer of a volume or a snapshot."""
        return {layer for volume in self._known.values() for layer in volume.layers}

    def require_free(self, mount: VolumeMount, *, machine: MachineId) -> None:
        """Return if that machine may have it now. VolumeGone; VolumeBusy: another one has it, or it is no snapshot."""
        volume = self.get(mount.volume)
        if mount.read_only and not volume.frozen:
            raise VolumeBusy(f"volume {mount.volume} is no snapshot: only those are mounted read-only")
        if not mount.read_only and volume.frozen:
            raise VolumeBusy(f"volume {mount.volume} is a snapshot: it is mounted read-only")
        others = [user for user in self._users(mount.volume) if user != machine]
        if others and not mount.read_only:
            raise VolumeBusy(f"machine {others[0]} has volume {mount.volume}")

    def require_root(self, root: VolumeId, *, machine: MachineId) -> Volume:
        """The volume or snapshot, if that machine may boot from it now. VolumeGone, VolumeBusy, NotBootable."""
        volume = self.get(root)
        if not volume.image:
            raise NotBootable(f"volume {root} has no system to boot from")
        if not volume.frozen:
            self.require_free(VolumeMount(root, "/"), machine=machine)
        return volume

    async def open_root(self, root: VolumeId, own: LayerId) -> list[LayerId]:
        """The layers of a root disk: the volume's own, or those of a snapshot below the machine's `own`."""
        async with self.turn(root):
            volume = self.get(root)
            if not volume.frozen:
                await self._seals.require_whole(volume.layers[1:])
                return list(volume.layers)
            await self._seals.require_whole(volume.layers)
            return [own, *volume.layers]

    async def system_of(self, root: VolumeId, own: LayerId) -> tuple[str, list[LayerId]]:
        """The image of a snapshot, and its layers below a machine's `own`. VolumeGone, VolumeDamaged; VolumeBusy."""
        volume = self.get(root)
        if not volume.frozen or not volume.image:
            raise VolumeBusy(f"volume {root} is no snapshot to boot from")
        return volume.image, await self.open_root(root, own)

    def writable(self, volume: VolumeId) -> bool:
        """Whether it is a volume, and no snapshot; also False for one that is gone."""
        return volume in self._known and not self._known[volume].frozen

    async def open(self, mount: VolumeMount) -> list[LayerId]:
        """The layers of a disk for a machine: the volume's own, or those of a snapshot with a fresh one on top."""
        async with self.turn(mount.volume):
            volume = self.get(mount.volume)
            if not mount.read_only:
                await self._seals.require_whole(volume.layers[1:])
                return list(volume.layers)
            await self._seals.require_whole(volume.layers)
            with self._layers.fresh() as fresh:
                await self.put_over(volume, fresh)
                # Between here and the machine's record nothing is awaited
                return [fresh, *volume.layers]

    # -- verbs

    async def create(self, volume: VolumeId, capacity: int, source: str = "") -> VolumeInfo:
        """See vm.api.Node.volume_create."""
        self.require_id(volume)
        if not CAPACITY[0] <= capacity <= CAPACITY[1]:
            raise HypervisorError(f"a volume's capacity is from {CAPACITY[0]} to {CAPACITY[1]} bytes")
        async with self.turn(volume):
            if volume in self._known:
                return await self.info(volume)
            # A snapshot must not go while something is made of it
            async with self.turn(source) if source in self._known else nullcontext():
                await self._create(volume, -(-capacity // _BLOCK) * _BLOCK, source)
        return await self.info(volume)

    async def _create(self, volume: VolumeId, capacity: int, source: str) -> None:
        below, image = self._source(source)
        if below is not None:
            await self._seals.require_whole(below.layers)
            capacity = max(capacity, below.capacity)
        with self._layers.fresh() as fresh:
            made = Volume(volume, capacity, [fresh, *(below.layers if below else ())], image)
            await self._lanes.run(f"volume {volume}", lambda: self._make(made, below), deadline=_MAKING)
            self._known[volume] = made

    async def remove(self, volume: VolumeId) -> None:
        """See vm.api.Node.volume_remove."""
        async with self.turn(volume):
            if volume not in self._known:
                return
            self._require_unused(volume)
            record = self._layout.volume(volume)
            del self._known[volume]
            await self._lanes.run(f"volume {volume}", lambda: _gone(record), deadline=_MAKING)
        self._lanes.forget(f"volume {volume}")
        self._locks.pop(volume, None)
        self.removed(volume)
        await self.sweep()

    async def list(self) -> list[VolumeInfo]:
        """See vm.api.Node.volume_list."""
        known = list(self._known.values())
        sizes = await self._lanes.run("volumes", lambda: self._sizes(known), deadline=_MAKING)
        # Some may have come and gone since
        return [self._told(volume, sizes) for volume in self._known.values()]

    async def shorten(self) -> None:
        """Merge the layers of one volume that has many and that no machine uses; whoever wants it waits."""
        for volume in list(self._known.values()):
            name = volume.volume
            if volume.frozen or len(volume.layers) <= MAX_LAYERS or name in self._kept_long or self._users(name):
                continue
            async with self.turn(name):
                if self._known.get(name) is volume and not self._users(name):
                    try:
                        await self._merge(volume)
                    except VmError as error:
                        # It is as it was; what this node could not do once it does not try again and again
                        self._kept_long.add(name)
                        log.warning("the layers of volume %s could not be merged: %s", name, error)
            await self.sweep()
            return

    async def _merge(self, volume: Volume) -> None:
        disk = self._layout.disk(volume.layers[0])
        image = image_find(self._config.image_cache, volume.image) if volume.image else None

        def merge() -> None:
            if image is None:
                volume_merge(disk, image=None)
            else:
                volume_merge(disk, image=image.root, image_format=image.root_format)

        await self._lanes.run(f"merge {volume.volume}", merge, deadline=_MERGING)
        self._lanes.forget(f"merge {volume.volume}")
        volume.layers = volume.layers[:1]
        await self.keep(volume)

    # -- for snapshots

    def require_id(self, volume: VolumeId) -> None:
        """Return if it can be a volume's. HypervisorError."""
        if not _VOLUME.fullmatch(volume):
            raise HypervisorError("a volume's id is 32 lower-case hexadecimal digits")

    def knows(self, volume: VolumeId) -> bool:
        """Whether there is one of that id."""
        return volume in self._known

    def may_know(self, volume: VolumeId) -> bool:
        """Whether there is one, or a record of one that cannot be read: what belongs to it is kept for a person."""
        return volume in self._known or self._layout.volume(volume).exists()

    async def put_over(self, volume: Volume, fresh: LayerId) -> None:
        """Make an empty layer over what the volume writes to now. HostFull."""
        disk, below = self._layout.disk(fresh), self._layout.disk(volume.layers[0])

        def make() -> None:
            volume_over(disk, backing=below, backing_format="qcow2", size=volume.capacity, owner=self._owner)

        await self._lanes.run(f"layer {fresh}", make, deadline=_MAKING)
        self._lanes.forget(f"layer {fresh}")

    async def keep(self, volume: Volume) -> None:
        """Write down what it is now. HostFull."""
        self._known[volume.volume] = volume
        lane = f"volume {volume.volume}"
        await self._lanes.run(lane, lambda: volume.save(self._layout), deadline=_MAKING)

    async def require_whole(self, volume: Volume) -> None:
        """Return if its layers are what they were when they became read-only. VolumeDamaged."""
        await self._seals.require_whole(volume.layers)

    async def require_unchanged(self, layers: Sequence[LayerId]) -> None:
        """Return if those of a machine's layers that became read-only are what they were then. VolumeDamaged."""
        await self._seals.require_unchanged(layers)

    async def sweep(self) -> None:
        """Remove the layers that nobody needs any more."""
        await self._layers.sweep(self._needed)

    async def put_layers(self, volume: VolumeId, layers: Sequence[LayerId]) -> None:
        """Write down that a volume has these from now on. VolumeGone, HostFull."""
        known = self.get(volume)
        known.layers = list(layers)
        await self.keep(known)

    def seal(self, snapshot: Volume) -> None:
        """Have checksums taken of what nobody writes to from now on."""
        self._seals.seal(snapshot.layers)

    async def grow(self, volume: Volume, capacity: int) -> None:
        """Make the disk of a volume at rest larger; its file system follows when it is mounted. HostFull."""
        disk = self._layout.disk(volume.layers[0])
        lane = f"volume {volume.volume}"
        await self._lanes.run(lane, lambda: volume_resize(disk, capacity), deadline=_MAKING)
        volume.capacity = capacity
        await self.keep(volume)

    # -- inside

    def turn(self, volume: VolumeId) -> asyncio.Lock:
        """Held by whoever changes a volume."""
        return self._locks.setdefault(volume, asyncio.Lock())

    def get(self, volume: VolumeId) -> Volume:
        """What is known of it. VolumeGone."""
        try:
            return self._known[volume]
        except KeyError:
            raise VolumeGone(f"no volume {volume} here") from None

    def _require_unused(self, volume: VolumeId) -> None:
        if users := self._users(volume):
            raise VolumeBusy(f"machine {users[0]} uses it")

    def _source(self, source: str) -> tuple[Volume | None, str]:
        """What lies below a new volume: a snapshot, and the image below that."""
        if not source:
            return None, ""
        if source == SYSTEM:
            return None, image_find(self._config.image_cache, self._config.image).hash
        below = self.get(source)
        if not below.frozen:
            raise VolumeBusy(f"volume {source} is no snapshot: it may change at any time")
        return below, below.image

    def _make(self, made: Volume, below: Volume | None) -> None:
        disk = self._layout.disk(made.layers[0])
        if below is not None:
            backing = self._layout.disk(below.layers[0])
            volume_over(disk, backing=backing, backing_format="qcow2", size=made.capacity, owner=self._owner)
        elif made.image:
            image = image_find(self._config.image_cache, made.image)
            made.capacity = max(made.capacity, image.root.stat().st_size)
            volume_over(
                disk, backing=image.root, backing_format=image.root_format, size=made.capacity, owner=self._owner
            )
        else:
            volume_empty(disk, size=made.capacity, owner=self._owner)
        made.save(self._layout)

    async def info(self, volume: VolumeId) -> VolumeInfo:
        """It as the world sees it. VolumeGone."""
        found = [info for info in await self.list() if info.volume == volume]
        if not found:
            raise VolumeGone(f"volume {volume} was removed meanwhile")
        return found[0]

    def _sizes(self, known: Sequence[Volume]) -> Mapping[LayerId, int]:
        return {layer: _allocated(self._layout.disk(layer)) for volume in known for layer in volume.layers}

    def _told(self, volume: Volume, sizes: Mapping[LayerId, int]) -> VolumeInfo:
        return VolumeInfo(
            volume=volume.volume,
            capacity=volume.capacity,
            allocated=sum(sizes.get(layer, 0) for layer in volume.layers if self._counts_for(layer) is volume),
            flattened=sum(sizes.get(layer, 0) for layer in volume.layers),
            bootable=bool(volume.image),
            frozen=volume.frozen,
            used_by=tuple(self._users(volume.volume)),
        )

    def _counts_for(self, layer: LayerId) -> Volume:
        """Whose a shared layer is: the oldest snapshot's, else the oldest volume's."""
        return min(
            (volume for volume in self._known.values() if layer in volume.layers),
            key=lambda volume: (not volume.frozen, volume.made, volume.volume),
        )


def volume_from_json(data: dict[str, Any]) -> Volume:
    """A record from what `Volume.save` wrote. TypeError, KeyError or ValueError if it is none."""
    volume = Volume(**{**data, "layers": [str(layer) for layer in data["layers"]]})
    if not _VOLUME.fullmatch(volume.volume) or not volume.layers:
        raise ValueError("no record of a volume")
    return volume


def _allocated(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _gone(record: Path) -> None:
    record.unlink(missing_ok=True)
    sync([record.parent])
