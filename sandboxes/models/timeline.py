"""What happened to a sandbox, for people: one row for each move of its state, never altered."""

from __future__ import annotations

from django.db import models
from django.utils import timezone

from sandboxes.models.sandbox import Sandbox, SandboxState, StopCause


class TimelineEntry(models.Model):
    """One happening; `state` is the state it led to, `text` says it in a sentence."""

    sandbox = models.ForeignKey(Sandbox, on_delete=models.CASCADE, related_name="timeline")
    at = models.DateTimeField(default=timezone.now)
    state = models.CharField(max_length=10, choices=SandboxState.choices)
    text = models.CharField(max_length=1000)
    cause = models.CharField(max_length=20, choices=StopCause.choices, blank=True)
    actor = models.CharField(max_length=150, blank=True)
    detail = models.CharField(max_length=500, blank=True)
    stages = models.JSONField(default=dict)

    class Meta:
        """Constraints and indexes."""

        indexes = [models.Index(fields=["sandbox", "id"])]

    def __str__(self) -> str:
        return f"{self.sandbox_id} {self.state}: {self.text}"
