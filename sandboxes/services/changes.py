"""What people change of a sandbox: its name, its labels, when it is suspended and when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.db import transaction
from django.utils import timezone

from sandboxes import audit, permissions, quotas, states, timeline
from sandboxes.errors import Conflict, Invalid
from sandboxes.models import Sandbox
from sandboxes.permissions import Actor
from sandboxes.services import limits, secrets
from sandboxes.services.lifecycle import sandbox_update


class Unchanged:
    """Stands for a value that stays as it is, where None means something."""


UNCHANGED = Unchanged()


def sandbox_change(
    *,
    sandbox: Sandbox,
    actor: Actor,
    name: str | None = None,
    labels: Mapping[str, str] | None = None,
    idle_minutes: int | Unchanged | None = UNCHANGED,
) -> Sandbox:
    """Give it another name, other labels, another time after which it is suspended for want of use."""
    permissions.require(actor, "sandbox.use", sandbox.organization_id)
    fields: dict[str, Any] = {}
    if name is not None:
        quotas.check_name(name)
        fields["name"] = name.strip()
    if labels is not None:
        quotas.check_labels(labels)
        fields["labels"] = dict(labels)
    if not isinstance(idle_minutes, Unchanged):
        quotas.check_idle_minutes(idle_minutes or 0)
        fields["idle_minutes"] = idle_minutes
    if fields:
        with transaction.atomic():
            sandbox_update(sandbox=sandbox, **fields)
            if labels is not None:
                secrets.secrets_relabelled(sandbox=sandbox)
            audit.record(
                actor=actor,
                organization_id=sandbox.organization_id,
                action="sandbox.change",
                target=sandbox.public_id,
                **fields,
            )
    return sandbox


def sandbox_extend(*, sandbox: Sandbox, actor: Actor, stop_at: datetime) -> datetime:
    """The deadline after the request: never earlier than before, never further away than the organization's limit.

    A session sandbox gets no deadline by it; what is returned is then only the time that was promised.
    Conflict when it has ended.
    """
    permissions.require(actor, "sandbox.extend", sandbox.organization_id)
    now = timezone.now()
    if stop_at <= now:
        raise Invalid("the new deadline lies in the past", field="stop_at_ms")
    with transaction.atomic():
        sandbox = (
            Sandbox.objects.select_for_update(of=("self",), no_key=True)
            .select_related("organization")
            .get(pk=sandbox.pk)
        )
        longest = limits.max_lifetime(sandbox.organization)
        wanted = stop_at if longest is None else min(stop_at, now + longest)
        if sandbox.state not in states.ALIVE:
            raise Conflict(f"it is {sandbox.state}", state=sandbox.state)
        if sandbox.stop_at is None:
            return wanted
        later = max(sandbox.stop_at, wanted)
        if later == sandbox.stop_at:
            return later
        sandbox_update(sandbox=sandbox, stop_at=later)
        timeline.record_deadline(sandbox=sandbox, actor=actor.label[:150])
        audit.record(
            actor=actor,
            organization_id=sandbox.organization_id,
            action="sandbox.extend",
            target=sandbox.public_id,
            stop_at=later.isoformat(),
        )
    return later
