"""What sandboxes connected to, which of it people were told of, and how far the nodes' journals have been read."""

from __future__ import annotations

from django.db import models

from sandboxes.models.organization import Organization
from sandboxes.models.sandbox import Sandbox


class EgressRecord(models.Model):
    """One connection or request of a sandbox that has ended; written once, in bulk, and never altered."""

    sandbox = models.ForeignKey(Sandbox, on_delete=models.CASCADE, related_name="egress_records", db_index=False)
    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="+")
    # The node's number of it: no other's, and larger than that of each before.
    number = models.BigIntegerField()
    at = models.DateTimeField()
    # Of the epoch: a whole number can be grouped by alike on every database.
    minute = models.PositiveIntegerField()
    kind = models.CharField(max_length=20)
    host = models.CharField(max_length=255)
    port = models.PositiveIntegerField()
    verdict = models.CharField(max_length=10)
    rule = models.CharField(max_length=520)
    detail = models.CharField(max_length=520)
    sent = models.BigIntegerField()
    received = models.BigIntegerField()
    seconds = models.FloatField()
    method = models.CharField(max_length=20, blank=True)
    path = models.CharField(max_length=520, blank=True)
    status = models.PositiveIntegerField(default=0)

    class Meta:
        """Constraints and indexes."""

        constraints = [models.UniqueConstraint(fields=["sandbox", "number"], name="one_egress_row_each")]
        indexes = [models.Index(fields=["sandbox", "minute"]), models.Index(fields=["at"])]

    def __str__(self) -> str:
        return f"{self.sandbox_id} {self.verdict} {self.host}:{self.port}"


class EgressPosition(models.Model):
    """How far a node's journal has been read; moved by one conditional UPDATE with the rows that were read."""

    node = models.CharField(max_length=60, unique=True)
    cursor = models.CharField(max_length=100, blank=True)
    dropped = models.PositiveBigIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.node}: {self.cursor}"


class EgressDenial(models.Model):
    """What people were told of, a denial, an alert or a connection that waits for them; the next is not for a while."""

    sandbox = models.ForeignKey(Sandbox, on_delete=models.CASCADE, related_name="egress_denials")
    kind = models.CharField(max_length=20)
    at = models.DateTimeField()
    host = models.CharField(max_length=255)
    port = models.PositiveIntegerField()
    rule = models.CharField(max_length=520)
    detail = models.CharField(max_length=520)
    # Of a connection that is not denied yet: until when it waits for an answer.
    waits_until = models.DateTimeField(null=True)

    class Meta:
        """Constraints and indexes."""

        indexes = [models.Index(fields=["sandbox", "at"])]

    def __str__(self) -> str:
        return f"{self.sandbox_id} {self.host}:{self.port}"
