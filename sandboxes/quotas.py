"""Limits on what may be asked for, as pure functions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from sandboxes.errors import Invalid, QuotaExceeded

MEMORY_MB = (768, 4096)
DEFAULT_MEMORY_MB = 1280
VCPUS = 2
DISK_GIB = 10
IDLE_MINUTES = 7 * 24 * 60
"""The longest time of its own after which a workspace may be suspended for want of use."""
CHECKPOINT_MINUTES = (5, 7 * 24 * 60)
"""The times after which a workspace that is used may have a checkpoint taken."""
NAME = 100
LABELS = 5
LABEL_KEY = 64
LABEL_VALUE = 128
ORGANIZATIONS = 20
"""Organizations one person may own, because each has machines of its own."""
ENV_ENTRIES = 256
ENV_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Amount:
    """What sandboxes take of an organization's room together, or one of them asks for."""

    sandboxes: int = 0
    vcpus: int = 0
    memory_mib: int = 0
    disk_gib: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What an organization may have at a time. None: no limit; `concurrent` 0: nothing may run.

    `max_lifetime` is in seconds from now; each extension may set a deadline anew.
    """

    concurrent: int
    vcpus: int | None = None
    memory_mib: int | None = None
    disk_gib: int | None = None
    creates_per_minute: int | None = None
    max_lifetime: int | None = None


MORE = "or ask whoever runs this installation for a higher limit"
FREES_DISK = "delete a workspace or a volume and wait until its disk is removed, a day later"


def check_room(*, used: Amount, asked: Amount, limits: Limits) -> None:
    """Return if what is asked for fits beside what is used. QuotaExceeded says which limit is in the way."""
    if asked.sandboxes and used.sandboxes + asked.sandboxes > limits.concurrent:
        raise QuotaExceeded(
            f"{used.sandboxes} sandboxes are running and the limit is {limits.concurrent}: stop one, {MORE}",
            quota="concurrent",
            used=used.sandboxes,
            limit=limits.concurrent,
        )
    _check_sum("vcpus", "vCPUs", used.vcpus, asked.vcpus, limits.vcpus, "stop a sandbox")
    _check_sum("memory_mib", "MiB of memory", used.memory_mib, asked.memory_mib, limits.memory_mib, "stop a sandbox")
    _check_sum("disk_gib", "GiB of disk", used.disk_gib, asked.disk_gib, limits.disk_gib, FREES_DISK)


def _check_sum(quota: str, what: str, used: int, asked: int, limit: int | None, remedy: str) -> None:
    # Whoever asks for nothing of a kind is not refused because a limit was lowered below what is used.
    if limit is not None and asked and used + asked > limit:
        raise QuotaExceeded(
            f"this takes {asked} {what}, {used} are in use, and the limit is {limit}: {remedy}, {MORE}",
            quota=quota,
            used=used,
            limit=limit,
        )


def check_rate(*, ages: list[float], limits: Limits) -> None:
    """Return if one more may be created; `ages` are the seconds since each create of the last minute.

    QuotaExceeded says in how many seconds there is room again, also as `retry_after`.
    """
    limit = limits.creates_per_minute
    if limit is None or len(ages) < limit:
        return
    # Once this one is older than a minute, one less than the limit is left.
    wait = max(1, math.ceil(60 - sorted(ages)[limit - 1]))
    raise QuotaExceeded(
        f"{len(ages)} sandboxes were created within the last minute and the limit is {limit}: "
        f"try again in {wait} s, {MORE}",
        quota="creates_per_minute",
        used=len(ages),
        limit=limit,
        retry_after=wait,
    )


def check_owned(*, owned: int) -> None:
    """Return if a person may own one more organization. QuotaExceeded otherwise."""
    if owned >= ORGANIZATIONS:
        raise QuotaExceeded(f"a person owns at most {ORGANIZATIONS} organizations", limit=ORGANIZATIONS)


def check_memory(memory_mb: int) -> None:
    """Invalid outside of what a machine can have."""
    low, high = MEMORY_MB
    if not low <= memory_mb <= high:
        raise Invalid(f"memory_mb is {memory_mb}: it must be from {low} to {high}", field="memory_mb")


def check_name(name: str) -> None:
    """Invalid if it is too long or holds control characters."""
    if len(name) > NAME or not name.isprintable():
        raise Invalid(f"a name has at most {NAME} printable characters", field="name")


def check_labels(labels: Mapping[str, str]) -> None:
    """Invalid if there are too many, or one is too long."""
    if len(labels) > LABELS:
        raise Invalid(f"{len(labels)} labels: there may be at most {LABELS}", field="labels")
    for key, value in labels.items():
        if not key or len(key.encode()) > LABEL_KEY:
            raise Invalid(f"label key {key[:20]!r}: 1 to {LABEL_KEY} bytes", field="labels")
        if len(value.encode()) > LABEL_VALUE:
            raise Invalid(f"value of label {key!r}: at most {LABEL_VALUE} bytes", field="labels")


def check_idle_minutes(minutes: int) -> None:
    """Invalid if it is no time after which something can be suspended; 0 says never."""
    if not 0 <= minutes <= IDLE_MINUTES:
        raise Invalid(f"idle_minutes is {minutes}: it must be from 0 (never) to {IDLE_MINUTES}", field="idle_minutes")


def check_checkpoint_minutes(minutes: int) -> None:
    """Invalid if it is no time after which a checkpoint can be taken; 0 says never."""
    if minutes and not CHECKPOINT_MINUTES[0] <= minutes <= CHECKPOINT_MINUTES[1]:
        low, high = CHECKPOINT_MINUTES
        raise Invalid(
            f"checkpoint_minutes is {minutes}: it must be 0 (never), or from {low} to {high}",
            field="checkpoint_minutes",
        )


def check_env(env: Mapping[str, str]) -> None:
    """Invalid if a name cannot be an environment variable, or all is too large."""
    if len(env) > ENV_ENTRIES:
        raise Invalid(f"{len(env)} environment variables: there may be at most {ENV_ENTRIES}", field="env")
    size = 0
    for key, value in env.items():
        if not re.fullmatch(r"[^=\0]{1,256}", key) or "\0" in value:
            raise Invalid(f"environment variable {key[:20]!r}: a name has no '=', and neither has a NUL", field="env")
        size += len(key.encode("utf-8", "surrogatepass")) + len(value.encode("utf-8", "surrogatepass"))
    if size > ENV_BYTES:
        raise Invalid(f"the environment has {size} bytes: there may be at most {ENV_BYTES}", field="env")
