"""The seam between machinery and everyone else: what a node can be asked, in types of ours.

`vm.node.client.NodeClient` speaks it to a node process, `vm.fake.FakeNode` in memory; `tests/contract/` holds both to
it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from vm.egress.journal import Passage, passage_from_json, passage_to_json

type MachineId = str
"""32 lower-case hex digits, made by the caller; never used for a second machine."""

type VolumeId = str
"""32 lower-case hex digits, made by the caller for a volume or a snapshot; never used for a second one."""


class MachineState(StrEnum):
    """Where a machine is. QUEUED, STARTING -> READY -> STOPPED; STOPPED is kept until `machine_forget`.

    READY -> SUSPENDING -> SUSPENDED, and from there by QUEUED, STARTING to READY again, or to STOPPED.
    """

    QUEUED = "queued"  # waits for one of the boot places
    STARTING = "starting"  # domain being made, or guest booting
    READY = "ready"  # the agent answers
    LOST = "lost"  # runs, but the agent has not answered for a while; comes back to READY by itself
    SUSPENDING = "suspending"  # its memory is being written to disk
    SUSPENDED = "suspended"  # no domain; disk and memory are kept, `machine_resume` goes on from there
    STOPPED = "stopped"  # no domain any more; `stop_reason` says why


class StopReason(StrEnum):
    """Why a machine is STOPPED, as far as the node knows."""

    REQUESTED = "requested"  # machine_stop
    GUEST_SHUTDOWN = "guest_shutdown"  # the guest powered itself off
    GUEST_CRASHED = "guest_crashed"  # kernel panic, or QEMU reported a crash
    HYPERVISOR_DIED = "hypervisor_died"  # QEMU was killed or failed
    BOOT_FAILED = "boot_failed"  # the agent never answered, or the domain could not be made
    HOST_RESTARTED = "host_restarted"  # the host booted meanwhile
    DISK_FULL = "disk_full"  # the host's image disk had no room
    HOST_OUT_OF_MEMORY = "host_out_of_memory"  # the host's kernel killed QEMU for want of memory
    MEMORY_LIMIT = "memory_limit"  # the host's kernel killed QEMU, which wanted more memory than it may have
    NO_CAPACITY = "no_capacity"  # when its turn came the host had no memory for it
    RECORD_UNREADABLE = "record_unreadable"  # the node cannot read what it wrote down; nothing of it is touched
    RESUME_FAILED = "resume_failed"  # its memory image could not be restored; its disk is as it was at the suspend


class Origin(StrEnum):
    """How a machine came to run, which says how long that may take."""

    COLD = "cold"  # booted
    CLONE = "clone"  # restored from a template's memory
    POOL = "pool"  # a clone that was waiting already
    RESUME = "resume"  # restored from its own memory
    FORK = "fork"  # restored from another running machine's memory


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes a started guest this sandbox and no other; delivered by the agent's `identity` call before READY."""

    hostname: str
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """What a machine may reach, as patterns (vm/egress/policy.py). `allow_net` None: every public host; empty: none.

    `ask`: a connection to a host that no pattern is about waits for a while, for another policy that decides.
    """

    allow_net: Sequence[str] | None = None
    deny: Sequence[str] = ()
    ask: bool = False


@dataclass(frozen=True, slots=True)
class Secret:
    """A value that a guest uses without ever holding it: what it holds is `placeholder`, swapped on the way out.

    `hosts` are patterns of names as in a policy: only there, and only over TLS that was verified, the value goes.
    Header values are always looked through; `places` adds "path", "query" and "body". The rules: vm/egress/secrets.py.
    """

    name: str
    placeholder: str
    value: str = field(repr=False)
    hosts: Sequence[str]
    places: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """A volume of a machine, mounted at an absolute path. One that is `read_only` is a snapshot."""

    volume: VolumeId
    path: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What to start. Sizes in MiB and GiB; `image` is a recipe hash, empty for the node's newest.

    `volumes` are mounted before it is READY. `root`: the volume that it boots from and writes to, or a snapshot, over
    which it gets a disk of its own; empty for one over the image.
    """

    machine: MachineId
    memory_mib: int
    vcpus: int
    disk_gib: int
    identity: Identity
    image: str = ""
    policy: EgressPolicy = EgressPolicy()
    volumes: Sequence[VolumeMount] = ()
    root: VolumeId = ""


@dataclass(frozen=True, slots=True)
class MachineInfo:
    """One machine as the node sees it. Times are epoch seconds; `stages` maps a stage's name to its seconds.

    `cpu_seconds` counts all its runs, suspends included; it goes back where the node lost what it noted last.
    `disk_bytes` is what its layers, also those that a fork shares, and its saved memory take on the host's disk. `note`
    says what people should know of its start, such as a fall back to a cold boot.
    `policy` is the digest of the policy that holds (`policy_digest`).
    `policy_wanted`: it has secrets whose values the node lost when it ended, so it has no network until
    `machine_policy` tells them again.
    """

    machine: MachineId
    state: MachineState
    memory_mib: int
    vcpus: int
    since: float
    stop_reason: StopReason | None = None
    detail: str = ""
    queue_position: int = 0
    cpu_seconds: float = 0.0
    disk_bytes: int = 0
    stages: Mapping[str, float] = field(default_factory=dict)
    origin: Origin | None = None
    note: str = ""
    policy: str = ""
    policy_wanted: bool = False


@dataclass(frozen=True, slots=True)
class HostInfo:
    """The host in numbers; memory and disk in bytes. `pool_ready` clones wait of the `pool_wanted` there should be.

    `registries` are the package registries that the image's own tools ask, as patterns of a policy.
    `interceptors` of the `interceptors_wanted` run: without one, hosts that a secret is for cannot be reached.
    `data_tag` is no other data directory's: with another one there are other machines.
    """

    name: str
    accelerator: str  # "kvm" or "tcg"
    cpus: int
    memory_total: int
    memory_available: int
    disk_total: int
    disk_free: int
    image: str
    boot_id: str
    templates: int = 0
    pool_ready: int = 0
    pool_wanted: int = 0
    registries: Sequence[str] = ()
    interceptors: int = 0
    interceptors_wanted: int = 0
    data_tag: str = ""


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """A volume, or a snapshot of one (`frozen`: nothing writes to it any more). Sizes in bytes.

    `allocated` is what it takes on the host's disk beside every other: what several share counts for one of them, a
    snapshot first. `flattened` is what it would take alone, the guest image left out. `used_by`: machines that are not
    STOPPED.
    """

    volume: VolumeId
    capacity: int
    allocated: int
    flattened: int
    bootable: bool
    frozen: bool = False
    used_by: Sequence[MachineId] = ()


@dataclass(frozen=True, slots=True)
class PassageEntry:
    """One connection of a machine that has ended. `number` is no other's of that node, and grows."""

    number: int
    machine: MachineId
    passage: Passage


@dataclass(frozen=True, slots=True)
class PassageBatch:
    """Connections in the order of their ends; ask on with `cursor`.

    `dropped` counts those that the node could not keep, or that nobody asked for in time, since it began to count.
    """

    cursor: str
    entries: Sequence[PassageEntry]
    dropped: int = 0


class ByteStream(Protocol):
    """One stream to a guest's agent, both directions with back-pressure; not to be shared between readers."""

    async def read(self, limit: int = 65_536) -> bytes:
        """Up to `limit` bytes; empty at the peer's end. StreamReset if it broke off."""

    async def write(self, data: bytes) -> None:
        """Send, waiting while the peer has no room. StreamReset if it broke off."""

    async def end(self) -> None:
        """Send nothing more; reading goes on. Repeatable."""

    async def abort(self) -> None:
        """Give the stream up in both directions. Repeatable; never raises."""


class Node(Protocol):
    """A host that runs machines. Every call may raise NodeUnreachable, NotAllowed and HypervisorError."""

    async def machine_start(self, spec: MachineSpec, *, secrets: Sequence[Secret] = ()) -> MachineInfo:
        """Take a waiting clone, or queue a clone or a cold boot; returns at once, READY already where one waited.

        From the second time on a snapshot that machines boot from has a template as well.
        A disk of that machine id is used again if one is there, by a cold boot. MachineExists while that machine is
        not STOPPED; HostFull, ImageMissing; VolumeGone, VolumeBusy, NotBootable; HypervisorError names a pattern or a
        secret that is none. Wait with `machine_wait`. The values of secrets stay in the node's memory.
        """

    async def machine_wait(self, machine: MachineId, *, timeout: float) -> MachineInfo:
        """The machine once it is READY, SUSPENDED or STOPPED, or as it is after `timeout` seconds. MachineGone."""

    async def machine_get(self, machine: MachineId) -> MachineInfo:
        """The machine as it is now. MachineGone if the node never had it or was told to forget it."""

    async def machine_list(self) -> list[MachineInfo]:
        """Every machine the node knows, STOPPED ones included."""

    async def machine_stop(self, machine: MachineId, *, detail: str = "") -> MachineInfo:
        """Shut the gate, then end the guest (its disk is flushed first where it answers); the disk stays. Repeatable.

        Also ends a SUSPENDED one, whose memory is dropped. Returns when the domain is gone. MachineGone if unknown.
        `detail` is kept; one that had stopped with another detail counts as STOPPED from now on.
        """

    async def machine_suspend(self, machine: MachineId) -> MachineInfo:
        """Write the memory of a READY machine to disk and end its domain; returns when it is SUSPENDED. Repeatable.

        MachineGone if it is unknown or does not run. HostFull or HypervisorError if its memory cannot be kept: it
        then runs on.
        """

    async def machine_resume(self, machine: MachineId) -> MachineInfo:
        """Queue a SUSPENDED machine to go on where it was, and return at once; wait with `machine_wait`. Repeatable.

        It ends up READY; SUSPENDED again, with its memory as it was and a detail, where the host had no room or no time
        for it; or STOPPED with RESUME_FAILED and its disk as it was. MachineGone if it is unknown or STOPPED; HostFull.
        """

    async def machine_fork(
        self, source: MachineId, spec: MachineSpec, *, secrets: Sequence[Secret] = ()
    ) -> MachineInfo:
        """A copy of the READY machine `source`, memory and disk, as `spec.machine` with an identity of its own.

        Both go on. Sizes and image are the source's, whatever `spec` says; policy and secrets are not. Returns once the
        copy is taken, with the new machine QUEUED or further. Of a volume that the source has, its root among them, the
        copy has what it held at that moment, as a disk of its own that goes with it (that of a mounted one when it is
        STOPPED), and its note says so. `spec.volumes` are the snapshots that both have, at the source's paths:
        VolumeBusy for anything else. MachineGone if the source does not run, MachineExists, HostFull.
        """

    async def machine_policy(
        self, machine: MachineId, policy: EgressPolicy, *, secrets: Sequence[Secret] = ()
    ) -> MachineInfo:
        """Let another policy and other secrets hold from now on, in whatever state the machine is. Repeatable.

        `secrets` are all that it has from now on: what is not among them is revoked. When this returns, the connections
        that are forbidden now are closed, and the next request has the new values. MachineGone if unknown;
        HypervisorError names a pattern or a secret that is none: all stays as it was then.
        """

    async def egress_passages(self, cursor: str, limit: int) -> PassageBatch:
        """At most `limit` (up to 2,000) connections that ended after `cursor`, of all machines; empty: from the oldest.

        Repeatable: whoever keeps a cursor only once he has kept the entries gets each at least once, by its number. A
        kill of the node loses half a second of them at most. What is older than some megabytes goes unasked. A cursor
        of another node, or of one that lost its data, counts as empty.
        """

    async def volume_create(self, volume: VolumeId, *, capacity: int, source: str = "") -> VolumeInfo:
        """A new volume of `capacity` bytes: an empty file system, or of what `source` holds. Repeatable.

        `source` is SYSTEM, the newest guest image, or a snapshot's id; it takes as long whatever the source holds. The
        capacity is the source's at least. VolumeGone if there is no such snapshot, VolumeBusy if it is none;
        VolumeDamaged; HostFull.
        """

    async def volume_snapshot(self, volume: VolumeId, snapshot: VolumeId) -> VolumeInfo:
        """Keep what a volume holds now as `snapshot`, which never changes. Repeatable; takes as long whatever it holds.

        A machine that has the volume goes on: its guest writes what is dirty, and then nothing for some 50 ms.
        VolumeBusy while that machine comes or goes, or is suspended; VolumeGone.
        """

    async def machine_snapshot(self, machine: MachineId, snapshot: VolumeId, *, memory: bool = False) -> VolumeInfo:
        """Keep what a machine's root disk holds now as `snapshot`, from which machines can boot. Repeatable.

        One that runs goes on as in `volume_snapshot`; of one that is SUSPENDED or STOPPED it is the disk as it was
        left. MachineGone if it comes or goes, or has never been READY; VolumeBusy while something else that takes
        longer is done with it. With its `memory`, of one that runs, a machine of the same sizes that is started from
        the snapshot goes on from that moment as a fork does, but with the environment it is given; where that cannot
        be it boots, and its note says so. VolumeBusy then where the machine has volumes, its root among them; HostFull.
        """

    async def machine_restore(self, machine: MachineId, snapshot: VolumeId) -> None:
        """Let the root disk of a STOPPED machine be what `snapshot` holds; what it held is gone. Repeatable.

        VolumeBusy if it is not STOPPED, or `snapshot` is none; VolumeGone, VolumeDamaged, NotBootable; MachineGone;
        HostFull.
        """

    async def volume_grow(self, volume: VolumeId, *, capacity: int) -> VolumeInfo:
        """Let a volume have that many bytes at least, its file system too if a machine has it, else when one does.

        Repeatable. VolumeGone; VolumeBusy for a snapshot, or while its machine comes or goes, or is suspended.
        """

    async def volume_list(self) -> list[VolumeInfo]:
        """Every volume and snapshot on this host."""

    async def volume_attach(self, machine: MachineId, mount: VolumeMount) -> None:
        """Plug a volume into a READY machine and mount it; returns when it can be used. Repeatable.

        A volume has one machine at a time: VolumeBusy while another one has it, or where the machine has no place for
        one more. A `read_only` mount is of a snapshot and any number may have it: VolumeBusy for a volume. VolumeGone,
        MachineGone; MachineFailed with the guest's words, as when it holds no file system: it is taken away again then.
        """

    async def volume_detach(self, machine: MachineId, volume: VolumeId) -> None:
        """Unmount a volume and unplug it; what was written is on the host's disk then. Repeatable.

        VolumeBusy says which programs of the guest use it. Nothing is left to do for a machine that is STOPPED.
        """

    async def volume_remove(self, volume: VolumeId) -> None:
        """Remove a volume or snapshot; what others were made from it stays whole. Repeatable. VolumeBusy."""

    async def machine_forget(self, machine: MachineId) -> None:
        """Remove a STOPPED machine with its disk and everything of it. Repeatable. MachineExists if it still runs."""

    async def host_info(self) -> HostInfo:
        """The host in numbers."""

    async def stream_open(self, machine: MachineId) -> ByteStream:
        """A new stream to the machine's agent: send one request on it (docs/guest-protocol.md).

        Waits up to a few seconds for a machine in LOST; MachineGone when it is not running.
        """

    def events(self) -> AsyncIterator[MachineInfo]:
        """Every state change from now on, until the caller stops; ends with NodeUnreachable when the node goes."""


def policy_digest(policy: EgressPolicy) -> str:
    """Tells whether two policies are the same: 16 hexadecimal digits."""
    allow = None if policy.allow_net is None else list(policy.allow_net)
    return hashlib.sha256(json.dumps([allow, list(policy.deny), policy.ask]).encode()).hexdigest()[:16]


VOLUMES = 8
"""Volumes that a machine has at most."""
SYSTEM = "system"
"""The source of a volume that is to hold the guest's system, and from which a machine can boot."""


def passages_to_json(batch: PassageBatch) -> dict[str, Any]:
    """The wire form of a PassageBatch."""
    entries = [[entry.number, entry.machine, passage_to_json(entry.passage)] for entry in batch.entries]
    return {"cursor": batch.cursor, "entries": entries, "dropped": batch.dropped}


def passages_from_json(data: Mapping[str, Any]) -> PassageBatch:
    """The inverse of `passages_to_json`."""
    entries = [PassageEntry(number, machine, passage_from_json(one)) for number, machine, one in data["entries"]]
    return PassageBatch(data["cursor"], entries, data["dropped"])


def volume_info_from_json(data: Mapping[str, Any]) -> VolumeInfo:
    """A VolumeInfo from its fields as JSON."""
    return VolumeInfo(**{**data, "used_by": tuple(data["used_by"])})


def machine_info_to_json(info: MachineInfo) -> dict[str, Any]:
    """The wire form of a MachineInfo: plain JSON types, keys as its fields."""
    return {
        "machine": info.machine,
        "state": info.state.value,
        "memory_mib": info.memory_mib,
        "vcpus": info.vcpus,
        "since": info.since,
        "stop_reason": info.stop_reason.value if info.stop_reason else None,
        "detail": info.detail,
        "queue_position": info.queue_position,
        "cpu_seconds": info.cpu_seconds,
        "disk_bytes": info.disk_bytes,
        "stages": dict(info.stages),
        "origin": info.origin.value if info.origin else None,
        "note": info.note,
        "policy": info.policy,
        "policy_wanted": info.policy_wanted,
    }


def machine_info_from_json(data: Mapping[str, Any]) -> MachineInfo:
    """The inverse of `machine_info_to_json`."""
    reason, origin = data["stop_reason"], data["origin"]
    return MachineInfo(
        **{
            **data,
            "state": MachineState(data["state"]),
            "stop_reason": StopReason(reason) if reason else None,
            "origin": Origin(origin) if origin else None,
        }
    )
