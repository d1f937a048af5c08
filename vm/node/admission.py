"""Whether the host has memory for one more machine. Pure."""

from __future__ import annotations


def lacking_mib(
    *, wanted: int, given: int, coming: int, reserve: int, total: int, available: int, certain: int = 0
) -> int:
    """By how many MiB the host's memory is too small for a machine of `wanted`; 0 or less if it fits.

    Both what is `given` to machines already, of which half is page cache and pages that guests never touch, and what
    is really `available` count; machines that are `coming` up have not taken theirs yet. `certain` is what this one
    takes at once, since its memory is full of that much already.
    """
    return max(given + wanted - total * 3 // 2, coming // 2 + max(wanted // 2, certain) + reserve - available)
