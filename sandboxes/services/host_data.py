"""Tells a data directory that is not mounted, or is another one, from machines that are lost.

Each data directory has a tag, which its node tells. The first that was ever seen is the one that rows are about; while
another one is told nothing is started and nothing settled: what the node does not know then is not gone.
"""

from __future__ import annotations

import structlog
from django.db import transaction
from django.utils import timezone

from sandboxes import audit
from sandboxes.errors import Conflict, Unavailable
from sandboxes.models import HostData, Organization

log = structlog.get_logger("atoll.host")

EXPLAINED = (
    "the host's data directory is another one than before, or is not mounted: nothing is started, and nothing is taken "
    "for lost, until the one from before is back"
)
"""Beside it, for whoever may do something about it."""
TROUBLE = "host: "
"""What begins the line of it in `/healthz`."""
REMEDY = (
    "mount the data directory that the database is about and restart Atoll; if it is lost for good, "
    '"manage.py adopt-data" goes on with the one that is there, and says of every machine that it is lost'
)


def host_data_seen(tag: str) -> bool:
    """Compare what the node tells with what rows are about; whether they may be settled by it. Repeatable."""
    if not tag:
        return True  # a node from before there were tags
    if HostData.objects.filter(tag=tag, other="").exists():
        return True  # as nearly always: nothing to lock
    with transaction.atomic():
        known, _ = HostData.objects.select_for_update(no_key=True).get_or_create(pk=1, defaults={"tag": tag})
        other = "" if known.tag == tag else tag
        if known.other != other:
            began = not known.other
            known.other, known.since = other, timezone.now() if other else None
            known.save()
            if began or not other:
                _tell(other)
    return not other


def _tell(other: str) -> None:
    """Log it, and tell all organizations' pages."""
    if other:
        log.error(EXPLAINED, remedy=REMEDY)
    else:
        log.warning("the host's data directory is the right one again")
    for organization_id in Organization.objects.values_list("pk", flat=True):
        audit.publish(organization_id=organization_id, kind="host", payload={"trouble": EXPLAINED if other else ""})


def host_data_trouble() -> str:
    """What is wrong with the host's data directory, for people; empty where nothing is."""
    return EXPLAINED if HostData.objects.exclude(other="").exists() else ""


def host_data_require() -> None:
    """Unavailable while the host has another data directory: a workspace would be started on an empty disk."""
    if trouble := host_data_trouble():
        raise Unavailable(trouble)


def host_data_adopt() -> None:
    """Go on with the data directory that is there: what it does not have is lost. Conflict where it is no other one."""
    with transaction.atomic():
        known = HostData.objects.select_for_update(no_key=True).exclude(other="").first()
        if known is None:
            raise Conflict("the node's data directory is the one that the database is about")
        log.warning("going on with another data directory", was=known.tag, tag=known.other)
        known.tag, known.other, known.since = known.other, "", None
        known.save()
        _tell("")
