"""The JSON of volumes under `/api/v1/`; sizes are bytes."""

from __future__ import annotations

from typing import Literal

from ninja import Field, Schema

from sandboxes.selectors.pages import PAGE


class VolumeName(Schema):
    """Which volume or snapshot."""

    id: str
    slug: str


class VolumeOut(Schema):
    """A volume or snapshot. `allocated`: what it takes on disk by itself; `flattened`: with what it shares."""

    id: str
    kind: Literal["volume", "snapshot"]
    slug: str
    state: Literal["creating", "ready", "deleted", "removed"]
    region: str
    capacity: int
    allocated: int
    flattened: int
    bootable: bool
    base: VolumeName | None
    source: VolumeName | None
    taken_of: str | None
    memory_mb: int
    creator: str
    created_at: str
    deleted_at: str | None
    restorable_until: str | None


class MountOut(Schema):
    """A volume or snapshot that a sandbox has."""

    volume: VolumeOut
    path: str
    read_only: bool


class VolumeUse(Schema):
    """A sandbox that has it at `path`; "/" is what it boots from. A stopped workspace takes it when it starts."""

    id: str
    name: str
    state: str
    path: str
    read_only: bool


class VolumeShown(VolumeOut):
    """With who has it."""

    used_by: list[VolumeUse]


class VolumePage(Schema):
    """Some of them; `next` is the cursor of those that follow."""

    items: list[VolumeShown]
    next: str | None


class VolumesWanted(Schema):
    """Which of them: `search` is a part of the slug, `cursor` the `next` of the page before."""

    state: Literal["ready", "deleted"] = "ready"
    search: str = ""
    limit: int = PAGE
    cursor: str = ""


class Kin(Schema):
    """A volume or snapshot in another's lineage; one that was removed is still named."""

    id: str
    kind: str
    slug: str
    state: str


class LineageOut(Schema):
    """Where it comes from, nearest first, and what comes from it directly, newest first."""

    ancestors: list[Kin]
    children: list[Kin]


class SnapshotIn(Schema):
    """What the snapshot is to be called."""

    slug: str


class SandboxSnapshotIn(SnapshotIn):
    """With `memory`, who boots from it goes on from that moment."""

    memory: bool = False


class VolumeChange(Schema):
    """Its new capacity, in bytes or as "10GB"."""

    capacity: int | str


class VolumeIn(Schema):
    """A new volume: `capacity` in bytes or as "10GB"; `source`: a snapshot, "builtin:debian-13", or "" for none."""

    slug: str
    capacity: int | str
    source: str = Field(default="")
