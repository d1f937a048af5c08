"""Drops what is older than it is kept, in transactions so short that they hold up nobody."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from axes.models import AccessAttempt, AccessLog
from django.contrib.sessions.models import Session
from django.db.models import QuerySet
from django.utils import timezone

from sandboxes.config import config
from sandboxes.models import AuditEntry, Organization, Sandbox, SandboxState, UsageHour, VolumeHour
from sandboxes.prices import month_begins_before
from sandboxes.services.usage import KEPT_MONTHS

BATCH = 500
"""Rows that one transaction drops."""
ATTEMPTS_KEPT = timedelta(days=1)
"""Sign-ins that failed: longer than they lock anybody out."""
MOST = 100_000
"""Rows of a kind, and of one organization, that one turn drops: what is left is for the next."""


def old_rows_drop(*, now: datetime | None = None) -> None:
    """Drop old audit rows and hours of use, sandboxes that no hour names, and what sign-ins left. Repeatable."""
    now = now or timezone.now()
    days, usage_begins = config()["audit_days"], month_begins_before(now, KEPT_MONTHS)
    if days:  # of everybody's sign-ins
        rows_drop(AccessLog.objects.filter(attempt_time__lt=now - timedelta(days=days)).order_by("attempt_time"))
    # By organization and age, as their indexes are
    for organization in Organization.objects.values_list("pk", flat=True):
        if days:
            audited = AuditEntry.objects.filter(organization=organization, created_at__lt=now - timedelta(days=days))
            rows_drop(audited.order_by("created_at"))
        for hours in (UsageHour, VolumeHour):
            rows_drop(hours.objects.filter(organization=organization, hour__lt=usage_begins).order_by("hour"))
        made = Sandbox.objects.filter(organization=organization, created_at__lt=usage_begins)
        over = made.filter(state=SandboxState.DELETED, machine_removed=True, state_since__lt=usage_begins)
        rows_drop(over.filter(usage_hours=None).order_by("created_at"))
    rows_drop(Session.objects.filter(expire_date__lt=now).order_by("expire_date"))
    rows_drop(AccessAttempt.objects.filter(attempt_time__lt=now - ATTEMPTS_KEPT).order_by("attempt_time"))


def rows_drop(rows: QuerySet[Any]) -> None:
    """Drop the first of these rows, which are in an order that an index has, a few in each transaction."""
    for _ in range(0, MOST, BATCH):
        keys = list(rows.values_list("pk", flat=True)[:BATCH])
        rows.model.objects.filter(pk__in=keys).delete()
        if len(keys) < BATCH:
            return
