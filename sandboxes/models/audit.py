"""Who did what: rows that are written with the change they tell of and never altered."""

from __future__ import annotations

from django.db import models

from sandboxes.models.organization import Organization


class AuditEntry(models.Model):
    """One act; `target` names its object for people, `detail` holds what matters of it (never a secret)."""

    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="audit_entries")
    actor = models.CharField(max_length=150)
    action = models.CharField(max_length=60)
    target = models.CharField(max_length=150)
    detail = models.JSONField(default=dict)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        """Constraints and indexes."""

        indexes = [models.Index(fields=["organization", "-created_at"])]

    def __str__(self) -> str:
        return f"{self.actor} {self.action} {self.target}"
