"""What a volume may be called and how large it may be; pure."""

from __future__ import annotations

import re

from sandboxes.errors import Invalid
from vm.api import VOLUMES

CAPACITY = (300 * 10**6, 20 * 10**9)
"""Bytes a volume may have."""
SYSTEM = "builtin:debian-13"
"""The guest's own system as a source."""
SYSTEM_CAPACITY = 10 * 10**9
"""Bytes that a volume of it has at least."""
PATH = 1000
"""Bytes of a mount path."""
MOUNTS = VOLUMES
"""Volumes that a sandbox may have at a time."""
_KERNEL = {"dev", "proc", "sys", "run"}
_SYSTEM = _KERNEL | {"bin", "boot", "etc", "lib", "lib64", "root", "sbin", "tmp", "usr", "var"}
_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])")
_SIZE = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([a-z]*)\s*", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def check_slug(slug: object) -> str:
    """The slug of a volume or snapshot. Invalid."""
    if not isinstance(slug, str) or not _SLUG.fullmatch(slug) or slug[2:4] == "--":
        raise Invalid(
            "a slug has 2 to 32 of a-z, 0-9 and '-', no '-' at its begin or end, and no '--' as third and fourth",
            field="slug",
        )
    return slug


def check_path(path: object) -> str:
    """Where a volume is to be mounted, without needless slashes. Invalid."""
    text = path if isinstance(path, str) else ""
    parts = [part for part in text.split("/") if part]
    if not text.startswith("/") or not text.isprintable() or len(text.encode()) > PATH:
        raise Invalid(f"a mount path is absolute, printable, and has at most {PATH} bytes", field="volumes")
    if not parts or {".", ".."} & set(parts):
        raise Invalid(f"a volume cannot be mounted at {text[:100]!r}", field="volumes")
    if parts[0] in _SYSTEM and (len(parts) == 1 or parts[0] in _KERNEL):
        raise Invalid(f"a volume cannot be mounted at {text[:100]!r}: the system is there", field="volumes")
    return "/" + "/".join(parts)


def capacity_of(capacity: object, *, least: int = CAPACITY[0]) -> int:
    """Bytes, from a number of them or a text such as "10GB" (10^9) or "10GiB" (2^30). Invalid, also out of bounds."""
    if isinstance(capacity, str) and (found := _SIZE.fullmatch(capacity)) and found[2].lower() in _UNITS:
        size = int(float(found[1]) * _UNITS[found[2].lower()])
    elif isinstance(capacity, int) and not isinstance(capacity, bool):
        size = capacity
    else:
        raise Invalid("a capacity is a number of bytes, or a text such as '10GB' or '512MiB'", field="capacity")
    if not least <= size <= CAPACITY[1]:
        raise Invalid(
            f"the capacity is {size} bytes: it must be from {least // 10**6} MB to {CAPACITY[1] // 10**9} GB",
            field="capacity",
        )
    return size
