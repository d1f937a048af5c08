"""Drops what is older than it is kept, in transactions so short that they hold up nobody."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.contrib.sessions.models import Session
from django.db.models import QuerySet
from django.utils import timezone

from sandboxes.config import config
from sandboxes.models import AuditEntry, Organization, Sandbox, SandboxState
from sandboxes.prices import month_begins_before
from sandboxes.services.usage import KEPT_MONTHS

BATCH = 500
"""Rows that one transaction drops."""
MOST = 100_000
"""Rows of a kind, and of one organization, that one turn drops: what is left is for the next."""


def old_rows_drop(*, now: datetime | None = None) -> None:
    """Drop old audit rows, sandboxes that not even usage names any more, and expired sessions. Repeatable."""
    now = now or timezone.now()
    days, usage_begins = config()["audit_days"], month_begins_before(now, KEPT_MONTHS)
    # By organization and age, as their indexes are
    for organization in Organization.objects.values_list("pk", flat=True):
        if days:
            audited = AuditEntry.objects.filter(organization=organization, created_at__lt=now - timedelta(days=days))
            _drop(audited.order_by("created_at"))
        made = Sandbox.objects.filter(organization=organization, created_at__lt=usage_begins)
        over = made.filter(state=SandboxState.DELETED, machine_removed=True, state_since__lt=usage_begins)
        _drop(over.filter(usage_hours=None).order_by("created_at"))
    _drop(Session.objects.filter(expire_date__lt=now).order_by("expire_date"))


def _drop(rows: QuerySet[Any]) -> None:
    for _ in range(0, MOST, BATCH):
        keys = list(rows.values_list("pk", flat=True)[:BATCH])
        rows.model.objects.filter(pk__in=keys).delete()
        if len(keys) < BATCH:
            return
