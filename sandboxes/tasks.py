"""Celery's front doors to the domain: each calls one service and is safe to run twice."""

from __future__ import annotations

import asyncio

from celery import shared_task

from sandboxes import reconcile as reconciler
from sandboxes.services.egress_journal import egress_collect, egress_prune
from sandboxes.services.spending import spending_enforce
from sandboxes.services.usage import usage_collect, usage_prune


@shared_task(name="sandboxes.reconcile")  # type: ignore[untyped-decorator]
def reconcile() -> None:
    """Settle differences between rows and machines."""
    asyncio.run(reconciler.reconcile())


@shared_task(name="sandboxes.deadlines")  # type: ignore[untyped-decorator]
def deadlines() -> None:
    """End what is past its time."""
    asyncio.run(reconciler.expire())


@shared_task(name="sandboxes.prune")  # type: ignore[untyped-decorator]
def prune() -> None:
    """Drop rows nobody can ask for any more."""
    reconciler.prune()
    usage_prune()


@shared_task(name="sandboxes.usage")  # type: ignore[untyped-decorator]
def usage() -> None:
    """Count what machines use."""
    asyncio.run(usage_collect())


@shared_task(name="sandboxes.egress")  # type: ignore[untyped-decorator]
def egress() -> None:
    """Take what sandboxes connected to into the journal."""
    asyncio.run(egress_collect())


@shared_task(name="sandboxes.egress_prune")  # type: ignore[untyped-decorator]
def prune_egress() -> None:
    """Keep of the journal what the installation keeps."""
    egress_prune()


@shared_task(name="sandboxes.spending")  # type: ignore[untyped-decorator]
def spending() -> None:
    """Hold organizations to their spending caps."""
    asyncio.run(spending_enforce())
