"""The organizations and tokens that SDK tests use."""

from __future__ import annotations

from sandboxes.models import Organization
from sandboxes.services import accounts, tokens


def prepare() -> dict[str, str]:
    """Two organizations with an owner and a token each; the first has room for many sandboxes, the second for two."""
    made = {}
    for slug, room in (("home", 100), ("other", 2)):
        user, organization = accounts.installation_prepare(email=f"owner@{slug}.example", organization=slug)
        Organization.objects.filter(pk=organization.pk).update(quota_concurrent=room)
        actor = accounts.actor_for_user(user=user, organization=slug)
        scopes = ("read", "sandboxes", "organization")
        _token, made[slug] = tokens.token_create(actor=actor, name="tests", scopes=scopes)
        made[f"{slug}_link"] = accounts.sign_in_link_create(user=user)
        _token, made[f"{slug}_viewer"] = tokens.token_create(actor=actor, name="reader", scopes=("read",))
    return made
