"""Spending caps: set by an organization's owners, told of when they come near, and held."""

from __future__ import annotations

import asyncio
from datetime import datetime
from decimal import Decimal
from typing import Any

import structlog
from django.db import transaction

from sandboxes import audit, permissions, states
from sandboxes.database import in_thread
from sandboxes.errors import Conflict, Invalid
from sandboxes.events import timestamp
from sandboxes.models import Organization, Sandbox, SandboxState, StopCause
from sandboxes.permissions import SYSTEM, Actor
from sandboxes.prices import Spending, SpendingLevel, exact, money
from sandboxes.selectors.spending import spending_of
from sandboxes.services import host_data, lifecycle, suspension

log = structlog.get_logger("atoll.spending")

LARGEST = Decimal("9999999999.99")
AT_ONCE = 4
"""Machines ended at a time: each flushes its disk."""
MOMENT = 5.0
"""Seconds for which a turn waits for one of them: the node ends it alone, and the reconciler sees what came of it."""


def spending_payload(spending: Spending) -> dict[str, Any]:
    """Spending as pages and REST show it (docs/api.md)."""
    cap = spending.cap
    return {
        "cap": None if cap is None else str(money(cap)),
        "spent": str(exact(spending.spent)),
        "currency": spending.currency,
        "level": str(spending.level),
        "month": f"{spending.month:%Y-%m}",
        "month_ends": timestamp(spending.month_ends),
    }


def spending_cap_set(*, actor: Actor, cap: Decimal | None) -> Spending:
    """Another cap for the actor's organization; None lifts it, and 0 lets nothing run. Invalid."""
    permissions.require(actor, "organization.spending", actor.organization_id)
    if cap is not None and not (cap.is_finite() and 0 <= cap <= LARGEST and cap == money(cap)):
        raise Invalid(f"a cap is an amount from 0 to {LARGEST} with at most two decimal places", field="spending_cap")
    with transaction.atomic():
        organization = Organization.objects.select_for_update(no_key=True).get(pk=actor.organization_id)
        before, organization.spending_cap = organization.spending_cap, cap
        organization.save(update_fields=["spending_cap"])
        audit.record(
            actor=actor,
            organization_id=organization.pk,
            action="organization.spending_cap",
            target=organization.slug,
            cap=None if cap is None else str(cap),
            before=None if before is None else str(before),
        )
        spending = spending_of(organization=organization)
        _tell(organization, spending)
        audit.publish(organization_id=organization.pk, kind="spending", payload=spending_payload(spending))
    return spending


async def spending_enforce(*, now: datetime | None = None) -> None:
    """Tell of caps that are near or reached, and halt what runs beyond one. Repeatable, also beside itself.

    Does nothing while the node has another data directory than rows are about.
    """
    if await in_thread(host_data.host_data_trouble):
        return
    places = asyncio.Semaphore(AT_ONCE)

    async def halt(sandbox: Sandbox) -> None:
        async with places:
            # It waited for its place: the cap may have been raised meanwhile
            if await in_thread(_is_reached, sandbox.organization_id, now):
                try:
                    async with asyncio.timeout(MOMENT):
                        await _halt(sandbox)
                except TimeoutError:
                    log.info("still being halted", sandbox=sandbox.public_id)

    await asyncio.gather(*(halt(sandbox) for sandbox in await in_thread(_beyond, now)))


def _is_reached(organization: int, now: datetime | None) -> bool:
    found = Organization.objects.get(pk=organization)
    return spending_of(organization=found, now=now).level is SpendingLevel.REACHED


def _beyond(now: datetime | None) -> list[Sandbox]:
    """What runs in organizations that have reached their cap."""
    beyond = []
    for organization in Organization.objects.exclude(spending_cap=None):
        spending = spending_of(organization=organization, now=now)
        with transaction.atomic():
            if _tell(organization, spending):
                audit.publish(organization_id=organization.pk, kind="spending", payload=spending_payload(spending))
        if spending.level is SpendingLevel.REACHED:
            beyond.append(organization.pk)
    # What is suspended uses no memory: it is left as it is, and so is what is about to be; what is being resumed is
    # found again once it runs.
    between = {SandboxState.SUSPENDING, SandboxState.RESUMING}
    running = (states.sources(states.Move.STOP) & states.ACTIVE) - between
    return list(Sandbox.objects.filter(organization__in=beyond, state__in=running))


async def _halt(sandbox: Sandbox) -> None:
    # What can go on later does; a session would have lost its connection.
    # Where its memory could not be saved the cap holds all the same: it is stopped, and a workspace keeps its disk.
    suspends = sandbox.state == SandboxState.RUNNING and not sandbox.session
    suspends = suspends and not suspension.failed_lately(sandbox)
    halt = suspension.sandbox_suspend if suspends else lifecycle.sandbox_stop
    try:
        await halt(
            sandbox=sandbox,
            actor=SYSTEM,
            cause=StopCause.SPENDING_CAP,
            detail="an owner can raise it",
            beside=False,
        )
    except Conflict as error:
        # It is on its way to another state: the next turn finds it there.
        log.info("not halted yet", sandbox=sandbox.public_id, why=error.message)


def _tell(organization: Organization, spending: Spending) -> bool:
    """Write down that the organization came to another level, once each month and level; False if it was known."""
    notice = f"{spending.month:%Y-%m}:{spending.level}"
    told = Organization.objects.filter(pk=organization.pk).exclude(spending_notice=notice)
    if not told.update(spending_notice=notice):
        return False
    if spending.level in (SpendingLevel.NEAR, SpendingLevel.REACHED):
        log.info(f"spending cap {spending.level}", organization=organization.slug)
        audit.record(
            actor=SYSTEM,
            organization_id=organization.pk,
            action=f"spending.{spending.level}",
            target=organization.slug,
            spent=str(money(spending.spent)),
            cap=str(spending.cap),
        )
    return True
