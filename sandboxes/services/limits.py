"""What an organization may have and has: asked before anything is started; set by the installation's administrator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from django.db import transaction
from django.db.models import Count, Q, Sum
from django.utils import timezone

from sandboxes import audit, quotas, states
from sandboxes.config import config
from sandboxes.errors import Invalid, NotFound
from sandboxes.models import Kind, Organization, Sandbox, SandboxState, Volume, VolumeKind
from sandboxes.permissions import SYSTEM
from sandboxes.quotas import Amount, Limits
from sandboxes.selectors.spending import spending_of

FIELDS = (
    "quota_concurrent",
    "quota_vcpus",
    "quota_memory_mib",
    "quota_disk_gib",
    "quota_creates_per_minute",
    "max_lifetime",
)
"""The limits by the name that both the organization's row and the installation's settings have for them."""
LARGEST = 2**31 - 1


def limits_of(organization: Organization) -> Limits:
    """The organization's own limits, and the installation's defaults where it has none."""
    defaults: Mapping[str, int] = {name: config()[name] for name in FIELDS}  # type: ignore[literal-required]
    own = {name: getattr(organization, name) for name in FIELDS}
    chosen = {name: defaults[name] if own[name] is None else own[name] for name in FIELDS}
    return Limits(
        concurrent=chosen["quota_concurrent"],
        vcpus=chosen["quota_vcpus"] or None,
        memory_mib=chosen["quota_memory_mib"] or None,
        disk_gib=chosen["quota_disk_gib"] or None,
        creates_per_minute=chosen["quota_creates_per_minute"] or None,
        max_lifetime=chosen["max_lifetime"] or None,
    )


def max_lifetime(organization: Organization) -> timedelta | None:
    """How far away a deadline may be set from now; None: as far as anybody wants."""
    seconds = limits_of(organization).max_lifetime
    return None if seconds is None else timedelta(seconds=seconds)


def in_use(organization: Organization) -> Amount:
    """What the organization's sandboxes take now; a workspace's disk counts until it is removed from its host."""
    active = Q(state__in=states.ACTIVE)
    kept = Q(kind=Kind.WORKSPACE) | ~Q(state=SandboxState.STOPPED)
    # By the index of states: most rows are those of sandboxes that are long gone.
    existing = set(SandboxState) - {SandboxState.DELETED}
    found = Sandbox.objects.filter(organization=organization, state__in=existing).aggregate(
        sandboxes=Count("pk", filter=active),
        vcpus=Sum("vcpus", filter=active, default=0),
        memory_mib=Sum("memory_mb", filter=active, default=0),
        disk_gib=Sum("disk_gib", filter=kept, default=0),
    )
    # A deleted one keeps its disk for as long as it can be restored, which therefore asks for nothing more.
    deleted = Sandbox.objects.filter(
        organization=organization, state=SandboxState.DELETED, kind=Kind.WORKSPACE, machine_removed=False
    ).aggregate(disk_gib=Sum("disk_gib", default=0))
    # Volumes may grow to what they were made for; a snapshot never grows.
    kept_volumes = Volume.objects.filter(organization=organization, removed=False).aggregate(
        capacity=Sum("capacity", filter=Q(kind=VolumeKind.VOLUME), default=0),
        snapshots=Sum("allocated", filter=~Q(kind=VolumeKind.VOLUME), default=0),
    )
    volumes = gib(kept_volumes["capacity"] + kept_volumes["snapshots"])
    return Amount(**{**found, "disk_gib": found["disk_gib"] + deleted["disk_gib"] + volumes})


def gib(size: int) -> int:
    """Bytes as GiB, rounded up."""
    return -(-size // 2**30)


def to_run(sandbox: Sandbox) -> Amount:
    """What a sandbox that exists asks for when it runs again; its disk is counted already."""
    return Amount(sandboxes=1, vcpus=sandbox.vcpus, memory_mib=sandbox.memory_mb)


def room_require(*, organization: Organization, asked: Amount, new: bool) -> None:
    """Return if it may have that; `new`: a sandbox is created for it, and not an old one started.

    QuotaExceeded otherwise. The caller holds the organization's row, or two could both get the last place.
    """
    limits = limits_of(organization)
    if organization.spending_cap is not None:
        spending_of(organization=organization).require_room()
    if new:
        now = timezone.now()
        made = Sandbox.objects.filter(organization=organization, created_at__gt=now - timedelta(minutes=1))
        quotas.check_rate(
            ages=[(now - moment).total_seconds() for moment in made.values_list("created_at", flat=True)],
            limits=limits,
        )
    quotas.check_room(used=in_use(organization), asked=asked, limits=limits)


def limits_set(*, slug: str, changes: Mapping[str, int | None]) -> Organization:
    """Set limits by their names in FIELDS; None goes back to the default. NotFound, Invalid.

    For the installation's administrator only, who is whoever can run its commands: no front door calls this.
    """
    for name, value in changes.items():
        if value is not None and not 0 <= value <= LARGEST:
            raise Invalid(f"{name} is {value}: it must be from 0 to {LARGEST}", field=name)
    with transaction.atomic():
        organization = Organization.objects.select_for_update(no_key=True).filter(slug=slug).first()
        if organization is None:
            raise NotFound(f"there is no organization {slug[:40]!r}")
        for name, value in changes.items():
            setattr(organization, name, value)
        organization.save(update_fields=list(changes))
        audit.record(
            actor=SYSTEM, organization_id=organization.pk, action="organization.limits", target=slug, **changes
        )
    return organization


@dataclass(frozen=True, slots=True)
class Line:
    """One limit for people to read; `used` None where that means nothing, `own` unless it is the default."""

    what: str
    limit: str
    used: str | None
    own: bool


def limits_shown(organization: Organization) -> list[Line]:
    """The organization's limits and what of them is used, in words."""
    limits, used = limits_of(organization), in_use(organization)
    rows: list[tuple[str, str, int | None, str, int | None]] = [
        ("quota_concurrent", "Sandboxes running at a time", limits.concurrent, "", used.sandboxes),
        ("quota_vcpus", "vCPUs of running sandboxes", limits.vcpus, "", used.vcpus),
        ("quota_memory_mib", "Memory of running sandboxes", limits.memory_mib, " MiB", used.memory_mib),
        (
            "quota_disk_gib",
            "Disks of workspaces and volumes, also deleted ones until they are removed, and of running sandboxes",
            limits.disk_gib,
            " GiB",
            used.disk_gib,
        ),
        ("quota_creates_per_minute", "Sandboxes created within a minute", limits.creates_per_minute, "", None),
        ("max_lifetime", "Furthest deadline of a sandbox", limits.max_lifetime, " s", None),
    ]
    return [
        Line(
            what=what,
            limit="no limit" if limit is None else f"{limit}{unit}",
            used=None if amount is None else f"{amount}{unit}",
            own=getattr(organization, name) is not None,
        )
        for name, what, limit, unit, amount in rows
    ]
