"""What each sandbox used, by the hour, and how far its use has been counted."""

from __future__ import annotations

from django.db import models

from sandboxes.models.organization import Organization
from sandboxes.models.sandbox import Sandbox


class UsageMeter(models.Model):
    """The last reading of one sandbox's machine; it moves on in the transaction that adds to the hours."""

    sandbox = models.OneToOneField(Sandbox, on_delete=models.CASCADE, primary_key=True, related_name="usage_meter")
    # Grows with each reading.
    turn = models.PositiveBigIntegerField(default=0)
    measured_at = models.DateTimeField()
    in_memory = models.BooleanField(default=False)
    cpu_seconds = models.FloatField(default=0)
    disk_bytes = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return f"meter of {self.sandbox_id}"


class UsageHour(models.Model):
    """What one sandbox used within one hour (UTC)."""

    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="+")
    sandbox = models.ForeignKey(Sandbox, on_delete=models.CASCADE, related_name="usage_hours")
    hour = models.DateTimeField()
    # Floats: SQLite's sum of integers fails beyond 2^63, which a year's byte-seconds reach.
    cpu_seconds = models.FloatField(default=0)
    memory_mib_seconds = models.FloatField(default=0)
    disk_byte_seconds = models.FloatField(default=0)

    class Meta:
        """Constraints and indexes."""

        constraints = [models.UniqueConstraint(fields=["sandbox", "hour"], name="one_usage_row_an_hour")]
        indexes = [models.Index(fields=["organization", "hour"])]

    def __str__(self) -> str:
        return f"{self.sandbox_id} at {self.hour:%Y-%m-%d %H}h"
