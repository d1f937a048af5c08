"""Celery's front doors to the domain: each calls one service and is safe to run twice."""

from __future__ import annotations

import asyncio

from celery import shared_task

from sandboxes import reconcile as reconciler


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
