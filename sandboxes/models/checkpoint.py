"""A workspace's timeline of checkpoints: what its disk held, when, and why that was kept."""

from __future__ import annotations

from django.db import models

from sandboxes.models.sandbox import Sandbox
from sandboxes.models.volume import Volume


class CheckpointCause(models.TextChoices):
    """Why one was taken."""

    IDLE = "idle", "it was suspended"
    STOP = "stop", "it stopped"
    HAND = "hand", "somebody asked for it"
    TIMER = "timer", "time had passed"
    RESTORE = "restore", "an earlier one was about to be restored"
    DEPLOY = "deploy", "it was deployed"


class Checkpoint(models.Model):
    """One moment of a workspace's disk. Only services/checkpoints.py writes it."""

    sandbox = models.ForeignKey(Sandbox, on_delete=models.CASCADE, related_name="checkpoints")
    volume = models.OneToOneField(Volume, on_delete=models.CASCADE, related_name="checkpoint")
    cause = models.CharField(max_length=10, choices=CheckpointCause.choices)
    note = models.CharField(max_length=200, blank=True)

    def __str__(self) -> str:
        return f"{self.volume_id} of {self.sandbox_id}"


class CheckpointFiles(models.Model):
    """The names, kinds, sizes, modes and times of all files of a checkpoint, once somebody has looked at them."""

    checkpoint = models.OneToOneField(Checkpoint, on_delete=models.CASCADE, related_name="files")
    # Compressed; sandboxes/file_lists.py reads it
    listing = models.BinaryField()

    def __str__(self) -> str:
        return f"files of {self.checkpoint_id}"
