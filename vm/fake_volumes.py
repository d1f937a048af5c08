"""The volumes of a node in memory: directories, which are seen through symbolic links where a machine mounts them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from vm.api import SYSTEM, MachineId, VolumeId, VolumeInfo, VolumeMount
from vm.errors import MachineFailed, NotBootable, VolumeBusy, VolumeGone


class FakeVolumes:
    """`mounts` says what each machine that is not STOPPED has."""

    def __init__(self, scratch: Path, mounts: Callable[[], Mapping[MachineId, Sequence[VolumeMount]]]) -> None:
        self._scratch = scratch
        self._mounts = mounts
        self._known: dict[VolumeId, VolumeInfo] = {}

    def create(self, volume: VolumeId, capacity: int, source: str) -> VolumeInfo:
        """See vm.api.Node.volume_create."""
        below = self._get(source) if source and source != SYSTEM else None
        if below is not None and not below.frozen:
            raise VolumeBusy(f"volume {source} is no snapshot: it may change at any time")
        if volume not in self._known:
            self.content(volume).mkdir(parents=True)
            if below is not None:
                shutil.copytree(self.content(source), self.content(volume), symlinks=True, dirs_exist_ok=True)
            self._known[volume] = VolumeInfo(
                volume,
                capacity=max(capacity, below.capacity) if below else capacity,
                allocated=4096,
                flattened=4096 + (below.flattened if below else 0),
                bootable=below.bootable if below else source == SYSTEM,
            )
        return self._told(self._known[volume])

    def snapshot(self, volume: VolumeId, snapshot: VolumeId) -> VolumeInfo:
        """See vm.api.Node.volume_snapshot."""
        source = self._get(volume)
        if source.frozen:
            raise VolumeBusy("it is a snapshot itself")
        if snapshot not in self._known:
            shutil.copytree(self.content(volume), self.content(snapshot), symlinks=True)
            self._known[snapshot] = replace(source, volume=snapshot, frozen=True)
        return self._told(self._known[snapshot])

    def snapshot_of(self, home: Path, snapshot: VolumeId) -> VolumeInfo:
        """See vm.api.Node.machine_snapshot; `home` is what the machine has for a disk."""
        if snapshot not in self._known:
            self.content(snapshot).parent.mkdir(parents=True, exist_ok=True)
            home.mkdir(exist_ok=True)
            shutil.copytree(home, self.content(snapshot), symlinks=True)
            self._known[snapshot] = VolumeInfo(snapshot, 10 * 2**30, 4096, 4096, bootable=True, frozen=True)
        return self._told(self._known[snapshot])

    def grow(self, volume: VolumeId, capacity: int) -> VolumeInfo:
        """See vm.api.Node.volume_grow."""
        source = self._get(volume)
        if source.frozen:
            raise VolumeBusy("it is a snapshot: it never changes")
        self._known[volume] = replace(source, capacity=max(source.capacity, capacity))
        return self._told(self._known[volume])

    def require_root(self, machine: MachineId, root: VolumeId) -> None:
        """Return if the machine may boot from it. VolumeGone, VolumeBusy, NotBootable."""
        volume = self._get(root)
        if not volume.bootable:
            raise NotBootable(f"volume {root} has no system to boot from")
        if not volume.frozen:
            self.require_free(machine, [VolumeMount(root, "/")])

    def writable(self, volume: VolumeId) -> bool:
        """Whether it is a volume, and no snapshot."""
        return volume in self._known and not self._known[volume].frozen

    def list(self) -> list[VolumeInfo]:
        """See vm.api.Node.volume_list."""
        return [self._told(info) for info in self._known.values()]

    def remove(self, volume: VolumeId) -> None:
        """See vm.api.Node.volume_remove."""
        if self._users(volume):
            raise VolumeBusy("a machine uses it")
        self._known.pop(volume, None)

    def require_free(self, machine: MachineId, mounts: Iterable[VolumeMount]) -> None:
        """Return if the machine may have these. VolumeGone, VolumeBusy."""
        for mount in mounts:
            if mount.read_only != self._get(mount.volume).frozen:
                raise VolumeBusy(f"volume {mount.volume} is not mounted like that")
            if not mount.read_only and [user for user in self._users(mount.volume) if user != machine]:
                raise VolumeBusy(f"a machine has volume {mount.volume}")

    def bring(self, mount: VolumeMount) -> None:
        """Let the guest see it. Repeatable. MachineFailed where there is something else."""
        path = Path(mount.path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not (path.is_symlink() and os.readlink(path) == str(self.content(mount.volume))):
                path.symlink_to(self.content(mount.volume))
        except OSError as error:
            raise MachineFailed(f"the volume could not be mounted at {mount.path}: {error.strerror}") from error

    def take(self, mounts: Iterable[VolumeMount]) -> None:
        """Let the guest see them no more. Repeatable."""
        for mount in mounts:
            with suppress(OSError):
                if os.readlink(mount.path) == str(self.content(mount.volume)):
                    os.unlink(mount.path)

    def content(self, volume: VolumeId) -> Path:
        """The directory that stands for its file system."""
        return self._scratch / "volumes" / volume

    def _get(self, volume: VolumeId) -> VolumeInfo:
        try:
            return self._known[volume]
        except KeyError:
            raise VolumeGone(f"no volume {volume} here") from None

    def _users(self, volume: VolumeId) -> tuple[MachineId, ...]:
        return tuple(
            machine
            for machine, mounts in self._mounts().items()
            if any(mount.volume == volume and not mount.read_only for mount in mounts) and self.writable(volume)
        )

    def _told(self, info: VolumeInfo) -> VolumeInfo:
        return replace(info, used_by=self._users(info.volume))
