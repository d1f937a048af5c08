"""Volumes, the snapshots of them, and what they used."""

from __future__ import annotations

from django.db import models

from sandboxes.models.organization import Organization
from sandboxes.models.sandbox import Sandbox


class VolumeKind(models.TextChoices):
    """A volume is written to; a snapshot is what a volume held at one moment, and never changes.

    A checkpoint is a snapshot in a workspace's timeline: in no list, and gone when the timeline needs it no more.
    """

    VOLUME = "volume"
    SNAPSHOT = "snapshot"
    CHECKPOINT = "checkpoint"


class VolumeState(models.TextChoices):
    """A deleted one can be restored until it is removed from its host, a day later."""

    CREATING = "creating"
    READY = "ready"
    DELETED = "deleted"


class Volume(models.Model):
    """A volume or a snapshot: one table, because they share one namespace. Only services/volumes.py writes it."""

    public_id = models.CharField(max_length=32, unique=True)
    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="volumes")
    kind = models.CharField(max_length=10, choices=VolumeKind.choices)
    slug = models.CharField(max_length=32)
    region = models.CharField(max_length=3)
    # In bytes, as it was asked for.
    capacity = models.BigIntegerField()
    bootable = models.BooleanField(default=False)
    # The snapshot that it was made from, and of a snapshot: the volume that it was taken of.
    base = models.ForeignKey("self", null=True, on_delete=models.SET_NULL, related_name="+")
    source = models.ForeignKey("self", null=True, on_delete=models.SET_NULL, related_name="snapshots")
    # Of a snapshot of a sandbox's own disk: that sandbox's public id.
    taken_of = models.CharField(max_length=32, blank=True)
    # Of a snapshot with the memory of its sandbox: MiB, which who boots from it has as well.
    memory_mb = models.PositiveIntegerField(default=0)
    # What the node calls it.
    disk = models.CharField(max_length=32, unique=True)
    state = models.CharField(max_length=10, choices=VolumeState.choices, default=VolumeState.CREATING)
    creator_name = models.CharField(max_length=150, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    deleted_at = models.DateTimeField(null=True)
    # Nothing of it is left on its host.
    removed = models.BooleanField(default=False)

    # The last reading, in bytes.
    allocated = models.BigIntegerField(default=0)
    flattened = models.BigIntegerField(default=0)
    measured_at = models.DateTimeField(null=True)

    class Meta:
        """Constraints and indexes."""

        constraints = [
            models.UniqueConstraint(
                fields=["organization", "slug"],
                condition=~models.Q(state=VolumeState.DELETED),
                name="one_volume_or_snapshot_a_slug",
            )
        ]
        indexes = [models.Index(fields=["removed", "state"])]

    def __str__(self) -> str:
        return self.public_id


class VolumeMount(models.Model):
    """A volume or snapshot that a sandbox has, at a path. Only services/mounts.py writes it.

    A volume is that sandbox's alone for as long as it is not stopped; a snapshot is `read_only`, and any number's.
    """

    sandbox = models.ForeignKey(Sandbox, on_delete=models.CASCADE, related_name="mounts")
    volume = models.ForeignKey(Volume, on_delete=models.CASCADE, related_name="mounts")
    path = models.CharField(max_length=1024)
    read_only = models.BooleanField(default=False)

    class Meta:
        """Constraints and indexes."""

        constraints = [
            models.UniqueConstraint(fields=["sandbox", "volume"], name="one_mount_of_a_volume_in_a_sandbox"),
            models.UniqueConstraint(fields=["sandbox", "path"], name="one_mount_at_a_path"),
        ]

    def __str__(self) -> str:
        return f"{self.volume_id} in {self.sandbox_id}"


class VolumeHour(models.Model):
    """What one volume or snapshot took on its host's disk within one hour (UTC)."""

    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="+")
    volume = models.ForeignKey(Volume, on_delete=models.CASCADE, related_name="usage_hours")
    hour = models.DateTimeField()
    byte_seconds = models.FloatField(default=0)

    class Meta:
        """Constraints and indexes."""

        constraints = [models.UniqueConstraint(fields=["volume", "hour"], name="one_volume_row_an_hour")]
        indexes = [models.Index(fields=["organization", "hour"])]

    def __str__(self) -> str:
        return f"{self.volume_id} at {self.hour:%Y-%m-%d %H}h"


class StrayVolume(models.Model):
    """A volume that a node has and no row names, since when; it is removed if that stays so for a day."""

    disk = models.CharField(max_length=32, primary_key=True)
    since = models.DateTimeField()

    def __str__(self) -> str:
        return self.disk
