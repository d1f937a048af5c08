"""`/api/v1/tokens`: one's own tokens, and the organization's."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from ninja import Router, Status

from ide.api.schemas import Problem, TokenIn, TokenMade, TokenOut
from sandboxes.database import in_thread
from sandboxes.events import timestamp
from sandboxes.models import Role, Token
from sandboxes.permissions import Actor
from sandboxes.selectors.tokens import token_list
from sandboxes.services import tokens

router = Router(tags=["tokens"])


def _shown(token: Token) -> dict[str, Any]:
    return {
        "id": token.pk,
        "name": token.name,
        "kind": "personal" if token.user_id else "organization",
        "prefix": token.prefix,
        "scopes": token.scopes,
        "role": token.role,
        "owner": token.user.label if token.user else None,
        "created_at": timestamp(token.created_at),
        "expires_at": timestamp(token.expires_at),
        "last_used_at": timestamp(token.last_used_at),
        "revoked_at": timestamp(token.revoked_at),
    }


def _all(actor: Actor) -> list[dict[str, Any]]:
    return [_shown(token) for token in token_list(actor=actor)]


def _make(actor: Actor, body: TokenIn) -> dict[str, Any]:
    token, secret = tokens.token_create(
        actor=actor,
        name=body.name,
        personal=body.kind == "personal",
        scopes=body.scopes,
        role=Role(body.role),
        expires_in_days=body.expires_in_days,
    )
    return {"token": _shown(token), "secret": secret}


@router.get("", response={200: list[TokenOut]})
async def everything(request: HttpRequest) -> list[dict[str, Any]]:
    """Tokens, newest first."""
    return await in_thread(_all, request.auth)  # type: ignore[attr-defined]


@router.post("", response={201: TokenMade, 400: Problem, 403: Problem})
async def create(request: HttpRequest, body: TokenIn) -> Any:
    """Make one; its secret is in this answer and nowhere else."""
    return Status(201, await in_thread(_make, request.auth, body))  # type: ignore[attr-defined]


@router.delete("/{token}", response={204: None, 403: Problem, 404: Problem})
async def revoke(request: HttpRequest, token: int) -> Any:
    """End it at once."""
    await in_thread(tokens.token_revoke, token_id=token, actor=request.auth)  # type: ignore[attr-defined]
    return Status(204, None)
