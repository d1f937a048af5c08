"""Writes audit rows and outbox events inside the transaction of the change they tell of."""

from __future__ import annotations

from typing import Any

from sandboxes.models import AuditEntry, Event
from sandboxes.permissions import AnyActor


def record(*, actor: AnyActor, organization_id: int, action: str, target: str, **detail: Any) -> None:
    """One audit row; call it in the transaction of the change. Never pass a secret."""
    AuditEntry.objects.create(
        organization_id=organization_id, actor=actor.label[:150], action=action, target=target[:150], detail=detail
    )


def publish(*, organization_id: int, kind: str, payload: dict[str, Any]) -> None:
    """One outbox row; web processes pass it on once the transaction is committed."""
    Event.objects.create(organization_id=organization_id, kind=kind, payload=payload)
