"""What every signed-in page shows around its content, and in which organization its person is."""

from __future__ import annotations

from typing import Any, cast

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from sandboxes.models import Membership, User
from sandboxes.permissions import RULES, allows
from sandboxes.services import accounts

CHOSEN = "organization"
"""The session's key for the slug of the organization that was chosen last."""


def frame(request: HttpRequest, island: str, membership: Membership, **config: Any) -> dict[str, Any]:
    """What a signed-in page shows and tells its scripts."""
    user = cast(User, request.user)
    actor = accounts.actor_of(user=user, membership=membership)
    organization = membership.organization
    memberships = user.memberships.select_related("organization").order_by("organization__name")
    may = [action for action in RULES if allows(actor, action, organization.pk)]
    return {
        "island": island,
        "membership": membership,
        "memberships": list(memberships),
        "may": may,
        "config": {
            "island": island,
            "organization": {"slug": organization.slug, "name": organization.name},
            "may": may,
            "you": user.email,
            "role": membership.role,
            "origin": f"{request.scheme}://{request.get_host()}",
            **config,
        },
    }


def membership_of(request: HttpRequest) -> Membership | None:
    """In the organization chosen in this session, else in the first one joined."""
    mine = cast(User, request.user).memberships.select_related("organization")
    chosen = mine.filter(organization__slug=request.session.get(CHOSEN, "")).first()
    return chosen or mine.order_by("created_at", "pk").first()


def nowhere(request: HttpRequest) -> HttpResponse:
    """For a person who belongs to no organization."""
    return render(request, "account/nowhere.html", status=403)
