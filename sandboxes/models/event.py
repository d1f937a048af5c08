"""The outbox: what happened, with a cursor, for whoever watches an organization."""

from __future__ import annotations

from django.db import models

from sandboxes.models.organization import Organization


class Event(models.Model):
    """One change to show; the id is the cursor, the payload is what the interface draws."""

    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="+")
    kind = models.CharField(max_length=40)
    payload = models.JSONField(default=dict)
    created_at = models.DateTimeField(auto_now_add=True, db_index=True)

    def __str__(self) -> str:
        return f"{self.id} {self.kind}"
