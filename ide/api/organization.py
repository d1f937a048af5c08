"""`/api/v1/me` and `/api/v1/audit`: who one is, and what was done."""

from __future__ import annotations

from typing import Annotated, Any

from django.http import HttpRequest
from ninja import Field, Router

from ide.api.schemas import AuditOut, Me, Problem
from sandboxes import permissions
from sandboxes.database import in_thread
from sandboxes.events import timestamp
from sandboxes.models import AuditEntry, Membership, Organization, User
from sandboxes.permissions import Actor
from sandboxes.selectors.spending import spending_of
from sandboxes.services import limits
from sandboxes.services.spending import spending_payload

router = Router(tags=["organization"])


def _me(actor: Actor) -> dict[str, Any]:
    organization = Organization.objects.get(pk=actor.organization_id)
    user = User.objects.filter(pk=actor.user_id).first() if actor.user_id else None
    memberships = Membership.objects.filter(user=user).select_related("organization") if user else []
    return {
        "user": {"email": user.email, "name": user.name} if user else None,
        "organization": {"slug": organization.slug, "name": organization.name},
        "role": str(actor.role),
        "may": [a for a in permissions.RULES if permissions.allows(actor, a, actor.organization_id)],
        "organizations": [
            {"slug": m.organization.slug, "name": m.organization.name, "role": m.role} for m in memberships
        ],
        "quota": {
            "concurrent": limits.limits_of(organization).concurrent,
            "used": limits.in_use(organization).sandboxes,
        },
        "spending": spending_payload(spending_of(organization=organization)),
    }


@router.get("/me", response={200: Me, 401: Problem})
async def me(request: HttpRequest) -> dict[str, Any]:
    """Who is asking, where, and what he may do."""
    return await in_thread(_me, request.auth)  # type: ignore[attr-defined]


def _audit(actor: Actor, limit: int) -> list[dict[str, Any]]:
    permissions.require(actor, "audit.view", actor.organization_id)
    rows = AuditEntry.objects.filter(organization_id=actor.organization_id).order_by("-id")[:limit]
    return [
        {
            "actor": row.actor,
            "action": row.action,
            "target": row.target,
            "detail": row.detail,
            "created_at": timestamp(row.created_at),
        }
        for row in rows
    ]


@router.get("/audit", response={200: list[AuditOut], 403: Problem})
async def audit(request: HttpRequest, limit: Annotated[int, Field(ge=1, le=1000)] = 100) -> list[dict[str, Any]]:
    """What was done in the organization, newest first."""
    return await in_thread(_audit, request.auth, limit)  # type: ignore[attr-defined]
