"""What an organization's sandboxes may take."""

from __future__ import annotations

from datetime import timedelta

from sandboxes.models import Organization


def max_lifetime(organization: Organization) -> timedelta | None:
    """The longest time a sandbox may have before its deadline, from now on; None: it needs no deadline."""
    return timedelta(minutes=30)
