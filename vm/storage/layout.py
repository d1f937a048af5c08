"""The one place that knows where things lie below a node's data directory."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from vm.api import MachineId, VolumeId
from vm.errors import HypervisorError

type BodyId = str
"""32 hex digits: what a domain, its namespace and its socket are called after; a machine has one at a time."""
type LayerId = str
"""32 hex digits: a qcow2 file of a root disk or a volume, named when it is made and never renamed."""

# A unix socket's path has 107 bytes; the longest of ours is libvirt's monitor socket, see `Layout.too_long`.
_SOCKET_PATH = 107
_LONGEST = "libvirt/lib/qemu/domain-99999-atoll-0123456789abcd/monitor.sock"


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths below `data`. What belongs to one machine is `machine(id)`, its socket, and nothing else."""

    data: Path

    @property
    def machines(self) -> Path:
        """One directory for each machine the node knows."""
        return self.data / "machines"

    @property
    def state(self) -> Path:
        """What the node itself must not forget: the installation's tag, the last tap number."""
        return self.machines / "node.json"

    @property
    def run(self) -> Path:
        """Sockets and the lock."""
        return self.data / "run"

    @property
    def lock(self) -> Path:
        """Held by the one node process of this data directory."""
        return self.run / "node.lock"

    @property
    def socket(self) -> Path:
        """Where the node listens."""
        return self.run / "node.sock"

    @property
    def journal(self) -> Path:
        """What machines connected to, until somebody has asked for it."""
        return self.data / "journal"

    @property
    def agents(self) -> Path:
        """The machines' channels, as unix sockets that QEMU listens on."""
        return self.run / "agents"

    @property
    def probe(self) -> Path:
        """What the probe guest said about this host since it booted."""
        return self.machines / "accelerator.json"

    @property
    def authority(self) -> Path:
        """The certificate of the installation's own authority, which guests trust."""
        return self.data / "keys" / "egress-ca.pem"

    @property
    def authority_key(self) -> Path:
        """Its key, which root can read."""
        return self.data / "keys" / "egress-ca.key"

    @property
    def libvirt(self) -> Path:
        """Root of libvirt's embedded driver."""
        return self.data / "libvirt"

    def machine(self, machine: MachineId) -> Path:
        """The directory of one machine."""
        return self.machines / machine

    def record(self, machine: MachineId) -> Path:
        """What the node knows about it, as JSON; a directory without one is half-made."""
        return self.machine(machine) / "machine.json"

    def names(self, machine: MachineId) -> Path:
        """The names that it has looked up, one a line: the place of each is its virtual address."""
        return self.machine(machine) / "names"

    def memory(self, machine: MachineId) -> Path:
        """Its memory while it is suspended, as a save image."""
        return self.machine(machine) / "memory.save"

    def past_memory(self, machine: MachineId, body: BodyId) -> Path:
        """A memory that `body` was resumed from, until it is removed; what is left of them goes at a node's start."""
        return self.machine(machine) / f"memory-{body}.new"

    @property
    def volumes(self) -> Path:
        """What the node knows about volumes and their snapshots, a file each; their layers lie in `disks`."""
        return self.data / "volumes"

    def volume(self, volume: VolumeId) -> Path:
        """The record of one volume or snapshot."""
        return self.volumes / f"{volume}.json"

    @property
    def disks(self) -> Path:
        """Every layer of every disk, in one directory: layers are shared, and name each other by path."""
        return self.data / "disks"

    def disk(self, layer: LayerId) -> Path:
        """One layer."""
        return self.disks / f"{layer}.qcow2"

    def seal(self, layer: LayerId) -> Path:
        """The checksum of a layer that nobody writes to any more."""
        return self.disks / f"{layer}.seal"

    def spare(self, layer: LayerId) -> Path:
        """An empty layer over that one, for its next clone."""
        return self.disks / f"{layer}.spare"

    @property
    def templates(self) -> Path:
        """One directory for each template."""
        return self.data / "templates"

    def template(self, key: str) -> Path:
        """The directory of one template; without a template.json in it, it is half-made."""
        return self.templates / key

    def agent(self, body: BodyId) -> Path:
        """The channel's socket of a domain."""
        return self.agents / f"{body}.sock"

    def too_long(self) -> int:
        """By how many bytes the data directory's path exceeds what unix sockets below it allow; 0 if it fits."""
        return max(0, len(str(self.data / _LONGEST).encode()) - _SOCKET_PATH)


def private_directory(path: Path) -> None:
    """Make a directory that only we may look into. HypervisorError if there is one that somebody else made."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        there = path.lstat()
        if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.geteuid() or stat.S_IMODE(there.st_mode) & 0o077:
            raise HypervisorError(f"{path} is there already and not ours: somebody else made it; remove it") from None
