"""What an organization has spent this month, and may."""

from __future__ import annotations

from datetime import datetime

from django.db.models import Sum
from django.utils import timezone

from sandboxes.config import config
from sandboxes.models import Organization, UsageHour, VolumeHour
from sandboxes.prices import Prices, Spending, Use, month_of


def prices() -> Prices:
    """The installation's price table."""
    told = config()
    return Prices(
        cpu_hour=told["price_cpu_hour"],
        memory_gb_hour=told["price_memory_gb_hour"],
        volume_gib_month=told["price_volume_gib_month"],
        currency=told["currency"],
    )


def spending_of(*, organization: Organization, now: datetime | None = None) -> Spending:
    """Since the month began, as far as it is counted: at most some seconds are missing."""
    begins, ends = month_of(now or timezone.now())
    found = UsageHour.objects.filter(organization=organization, hour__gte=begins, hour__lt=ends).aggregate(
        cpu_seconds=Sum("cpu_seconds", default=0.0),
        memory_mib_seconds=Sum("memory_mib_seconds", default=0.0),
        disk_byte_seconds=Sum("disk_byte_seconds", default=0.0),
    )
    volumes = VolumeHour.objects.filter(organization=organization, hour__gte=begins, hour__lt=ends)
    found["disk_byte_seconds"] += volumes.aggregate(sum=Sum("byte_seconds", default=0.0))["sum"]
    return Spending(
        cap=organization.spending_cap,
        spent=prices().cost(Use(**found)).total,
        currency=prices().currency,
        month=begins.date(),
        month_ends=ends,
    )
