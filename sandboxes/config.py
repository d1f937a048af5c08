"""The installation's own settings, typed; their values are put together in ide/settings."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import TypedDict, cast

from django.conf import settings


class Config(TypedDict):
    """What docs/settings.md explains, as far as the domain and the front doors need it."""

    region: str
    quota_concurrent: int
    idle_minutes: int
    checkpoint_minutes: int
    checkpoints_kept: int
    low_memory_mib: int
    stray_hours: int
    audit_days: int
    egress_days: int
    egress_rows: int
    quota_vcpus: int
    quota_memory_mib: int
    quota_disk_gib: int
    quota_creates_per_minute: int
    max_lifetime: int
    price_cpu_hour: Decimal
    price_memory_gb_hour: Decimal
    price_volume_gib_month: Decimal
    currency: str
    origin: str
    trusted_origins: list[str]
    node_socket: Path
    node_key: Path
    secrets_key: Path
    authority: Path
    expose_domain: str
    expose_public: bool
    ssh_host: str


def config() -> Config:
    """The settings now; tests change them."""
    return cast(Config, settings.ATOLL)
