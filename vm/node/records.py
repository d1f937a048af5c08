"""What the node knows about a machine, as it lies on disk: complete or not there, so a kill at any line is settled.

Also the little the node itself must not forget: its installation's tag, its data's, and the number of the last tap.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vm.api import (
    EgressPolicy,
    Identity,
    MachineId,
    MachineInfo,
    MachineSpec,
    MachineState,
    Origin,
    Secret,
    StopReason,
    VolumeId,
    VolumeMount,
    policy_digest,
)
from vm.errors import HostFull
from vm.storage.layout import BodyId, LayerId, Layout

MEMORY_STEP = 256  # MiB
"""Machines get memory in steps of this size, so that few sizes need templates of their own."""


@dataclass(slots=True)
class Attached:
    """A volume that a machine has: `layers` of its disk, the one it writes to first.

    Those of one that is read-only begin with a layer of the machine's own, which goes with it: a file system that was
    in use when its snapshot was taken has something to finish before it can be read. A `copy` is what a fork has of a
    volume of its original: that volume's at one moment, below a layer of its own.
    """

    volume: VolumeId
    path: str
    read_only: bool
    layers: list[LayerId]
    copy: bool = False

    @property
    def serial(self) -> str:
        """What the guest finds its disk by."""
        return serial_of(self.volume)


def serial_of(volume: VolumeId) -> str:
    """What the guest finds a volume's disk by: virtio has room for 20 bytes."""
    return volume[:20]


@dataclass(slots=True)
class Record:
    """One machine.

    `body` names its domain. `disks` are the layers of its disk, the one it writes to first; below the last lies the
    image. `boots` counts attempts to start it since it was asked for. `fresh` until it was READY once: nobody's work
    is on its disk. `origin` says how it starts, or started: from `template`, or from `memory`, a save image. That image
    is good until `committed`: from then on the processor may have run, and disk and memory have parted.
    `cpu_before` is what earlier domains used. `disk_bytes` leaves out what it shares with its template.
    `has_secrets` is all that is written down of them. `attached` are the volumes it has, until it is STOPPED.
    """

    spec: MachineSpec
    image: str
    state: MachineState
    since: float
    boot_id: str
    body: BodyId
    disks: list[LayerId] = field(default_factory=list)
    tap: str = ""
    boots: int = 0
    fresh: bool = True
    origin: Origin = Origin.COLD
    template: str = ""
    memory: str = ""
    committed: bool = False
    note: str = ""
    stop_reason: StopReason | None = None
    detail: str = ""
    stages: dict[str, float] = field(default_factory=dict)
    cpu_before: float = 0.0
    cpu_seconds: float = 0.0
    disk_bytes: int = 0
    has_secrets: bool = False
    attached: list[Attached] = field(default_factory=list)

    @property
    def machine(self) -> MachineId:
        """Its id."""
        return self.spec.machine

    @property
    def memory_mib(self) -> int:
        """What its domain has: what was asked for, rounded up."""
        return -(-self.spec.memory_mib // MEMORY_STEP) * MEMORY_STEP

    def info(self, queue_position: int = 0, *, policy_wanted: bool = False) -> MachineInfo:
        """As the world sees it."""
        return MachineInfo(
            machine=self.machine,
            state=self.state,
            memory_mib=self.spec.memory_mib,
            vcpus=self.spec.vcpus,
            since=self.since,
            stop_reason=self.stop_reason,
            detail=self.detail,
            queue_position=queue_position,
            cpu_seconds=self.cpu_seconds,
            disk_bytes=self.disk_bytes,
            stages=dict(self.stages),
            origin=self.origin,
            note=self.note,
            policy=policy_digest(self.spec.policy),
            policy_wanted=policy_wanted,
        )

    def enter(self, state: MachineState, *, reason: StopReason | None = None, detail: str = "") -> None:
        """Change the state."""
        self.state = state
        self.since = time.time()
        self.stop_reason = reason
        self.detail = detail[:1000]


def record_write(layout: Layout, machine: MachineId, data: dict[str, Any]) -> None:
    """Write a machine's record down, whole. HostFull if the disk is. Blocks."""
    layout.machine(machine).mkdir(mode=0o711, exist_ok=True)
    write_whole(layout.record(machine), data)


def spec_from_json(data: dict[str, Any]) -> MachineSpec:
    """A MachineSpec from its wire form. TypeError, KeyError or ValueError if it is none."""
    identity = data["identity"]
    # A machine from before there were policies has no network, and keeps having none
    policy = policy_from_json(data.get("policy", {"allow_net": [], "deny": []}))
    identity = Identity(hostname=identity["hostname"], env=dict(identity["env"]))
    volumes = tuple(mount_from_json(one) for one in data.get("volumes", ()))
    return MachineSpec(**{**data, "identity": identity, "policy": policy, "volumes": volumes})


def mount_from_json(data: dict[str, Any]) -> VolumeMount:
    """A VolumeMount from its wire form. TypeError, KeyError or ValueError if it is none."""
    return VolumeMount(str(data["volume"]), str(data["path"]), bool(data["read_only"]))


def policy_from_json(data: dict[str, Any]) -> EgressPolicy:
    """An EgressPolicy from its wire form. TypeError, KeyError or ValueError if it is none."""
    allow = data["allow_net"]
    return EgressPolicy(None if allow is None else tuple(allow), tuple(data["deny"]), bool(data.get("ask", False)))


def secrets_from_json(data: list[dict[str, Any]]) -> tuple[Secret, ...]:
    """Secrets from their wire form. TypeError, KeyError or ValueError if they are none, without a word of a value."""
    return tuple(
        Secret(one["name"], one["placeholder"], one["value"], tuple(one["hosts"]), tuple(one["places"])) for one in data
    )


def record_load(path: Path) -> Record:
    """The record in a file. ValueError if it is none."""
    try:
        data = json.loads(path.read_text())
        reason = data["stop_reason"]
        return Record(
            **{
                **data,
                "spec": spec_from_json(data["spec"]),
                "state": MachineState(data["state"]),
                "stop_reason": StopReason(reason) if reason else None,
                "origin": Origin(data["origin"]),
                "attached": [Attached(**one) for one in data.get("attached", ())],
            }
        )
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path} is no machine's record: {error}") from error


def write_whole(path: Path, data: dict[str, Any]) -> None:
    """Replace a file by `data` as JSON, or leave it as it is. HostFull on a full disk."""
    fresh = path.with_suffix(".new")
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(data, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HostFull(f"no room left on the disk of {path.parent}") from error
        raise


class Names:
    """Names that belong to this installation on this host and to nothing else."""

    def __init__(self, layout: Layout) -> None:
        self._path = layout.state
        self._place = str(layout.data.resolve())
        data = _state(self._path)
        original = Layout(Path(data.get("place", self._place))).state
        copied = _state(original).get("tag") == data.get("tag") and data and not original.samefile(self._path)
        if copied:
            # Beside its original: what that one's machines are called must not look like ours, to us or to libvirt
            shutil.rmtree(layout.libvirt / "run", ignore_errors=True)
        if copied or not data:
            data = {**data, "tag": secrets.token_hex(2), "taps": 0}
        self._tag: str = data["tag"]
        self._taps: int = data["taps"]
        # Whoever copies machines copies this: it says whose machines are here, not who runs them
        self.data_tag: str = data.get("data", "") or secrets.token_hex(16)
        if data.get("place") != self._place or data.get("data") != self.data_tag:
            self._write(self._taps)

    @property
    def prefix(self) -> str:
        """What our domains' and namespaces' names begin with."""
        return f"atoll-{self._tag}-"

    @property
    def tap_prefix(self) -> str:
        """What our taps' names begin with."""
        return f"t{self._tag}"

    def of(self, body: BodyId) -> str:
        """The name of a body's domain and of its namespace."""
        return f"{self.prefix}{body}"

    def body(self, name: str) -> BodyId:
        """The inverse of `of`."""
        return name.removeprefix(self.prefix)

    def next_tap(self) -> str:
        """A tap name that was never used and never will be again. HostFull if that cannot be written down. Blocks.

        One caller at a time.
        """
        # At destroy libvirt deletes whatever tap of that name it finds in the host's namespace: it must be no other's
        self._write(self._taps + 1)
        self._taps += 1
        return f"{self.tap_prefix}{self._taps:x}"

    def _write(self, taps: int) -> None:
        write_whole(self._path, {"tag": self._tag, "taps": taps, "place": self._place, "data": self.data_tag})


def _state(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
