"""Celery's front doors to the domain: each calls one service and is safe to run twice."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable

from celery import shared_task

from sandboxes import reconcile as reconciler
from sandboxes.services.checkpoints import checkpoints_turn
from sandboxes.services.egress_journal import egress_collect, egress_prune
from sandboxes.services.retention import old_rows_drop
from sandboxes.services.spending import spending_enforce
from sandboxes.services.usage import usage_collect
from sandboxes.services.volume_usage import volumes_collect
from sandboxes.services.volumes import volumes_settle

KINDS = 9
"""Tasks below. A worker with a thread for each of them lets none wait for another one's slow machine or database."""


def turn(name: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """A task of the timetable, which is left out while the turn before it still goes on in this worker."""

    def declare(work: Callable[[], None]) -> Callable[[], None]:
        going_on = threading.Lock()

        @functools.wraps(work)
        def alone() -> None:
            if going_on.acquire(blocking=False):
                try:
                    work()
                finally:
                    going_on.release()

        task: Callable[[], None] = shared_task(name=f"sandboxes.{name}")(alone)
        return task

    return declare


@turn("reconcile")
def reconcile() -> None:
    """Settle differences between rows and machines."""
    asyncio.run(reconciler.reconcile())


@turn("deadlines")
def deadlines() -> None:
    """End what is past its time."""
    asyncio.run(reconciler.expire())


@turn("prune")
def prune() -> None:
    """Drop rows nobody can ask for any more."""
    reconciler.prune()
    old_rows_drop()


@turn("usage")
def usage() -> None:
    """Count what machines use."""
    asyncio.run(usage_collect())


@turn("volumes")
def volumes() -> None:
    """Settle differences between rows and volumes, and count what these take."""
    asyncio.run(volumes_settle())
    asyncio.run(volumes_collect())


@turn("checkpoints")
def checkpoints() -> None:
    """Take the checkpoints that are due."""
    asyncio.run(checkpoints_turn())


@turn("egress")
def egress() -> None:
    """Take what sandboxes connected to into the journal."""
    asyncio.run(egress_collect())


@turn("egress_prune")
def prune_egress() -> None:
    """Keep of the journal what the installation keeps."""
    egress_prune()


@turn("spending")
def spending() -> None:
    """Hold organizations to their spending caps."""
    asyncio.run(spending_enforce())
