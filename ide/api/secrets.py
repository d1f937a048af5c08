"""`/api/v1/secrets` and a sandbox's own: names and hosts come back, values never."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from ninja import Router, Status

from ide.api.schemas import Problem, SandboxSecretIn, SandboxSecretOut, SecretIn, SecretOut, SecretRotation
from sandboxes.database import in_thread
from sandboxes.events import timestamp
from sandboxes.models import Secret
from sandboxes.permissions import Actor
from sandboxes.secret_rules import WantedSecret
from sandboxes.selectors.sandboxes import sandbox_get
from sandboxes.selectors.secrets import Shown, secret_list, secret_list_of
from sandboxes.services import delivery, secrets

router = Router(tags=["secrets"])
_REFUSED = {400: Problem, 403: Problem, 404: Problem, 409: Problem, 429: Problem, 503: Problem}
type Json = dict[str, Any]


def _actor(request: HttpRequest) -> Actor:
    actor: Actor = request.auth  # type: ignore[attr-defined]
    return actor


def _payload(shown: Shown) -> Json:
    secret = shown.secret
    return {
        "id": secret.public_id,
        "name": secret.name,
        "sandbox": secret.sandbox.public_id if secret.sandbox else None,
        "hosts": secret.hosts,
        "places": secret.places,
        "labels": secret.labels,
        "version": secret.version,
        "created_by": secret.creator_name,
        "created_at": timestamp(secret.created_at),
        "rotated_by": secret.rotated_by or None,
        "rotated_at": timestamp(secret.rotated_at),
        "pushed_at": timestamp(secret.pushed_at),
        "pending": shown.pending,
        "placeholder": shown.placeholder,
        "overridden": shown.overridden,
    }


def _all(actor: Actor, sandbox: str = "") -> list[Json]:
    if not sandbox:
        return [_payload(shown) for shown in secret_list(actor=actor)]
    row = sandbox_get(actor=actor, public_id=sandbox, restorable=True)
    return [_payload(shown) for shown in secret_list_of(actor=actor, sandbox=row)]


async def _told(actor: Actor, secret: Secret) -> Json:
    """The secret once machines have been told, as its list has it then."""
    await delivery.secrets_spread(organization_id=actor.organization_id)
    sandbox = secret.sandbox.public_id if secret.sandbox else ""
    found = await in_thread(_all, actor, sandbox)
    # Somebody may have revoked it meanwhile
    return next((one for one in found if one["id"] == secret.public_id), _payload(Shown(secret, 0)))


def wanted_secret(body: SandboxSecretIn, **more: Any) -> WantedSecret:
    """What a body asks for, as services take it."""
    return WantedSecret(
        name=body.name, value=body.value.get_secret_value(), hosts=body.hosts, places=body.places, **more
    )


def _create_for(actor: Actor, sandbox: str, body: SandboxSecretIn) -> Secret:
    row = sandbox_get(actor=actor, public_id=sandbox)
    return secrets.secret_create(wanted=wanted_secret(body), actor=actor, sandbox=row)


@router.get("/secrets", response={200: list[SecretOut], 403: Problem})
async def everything(request: HttpRequest) -> list[Json]:
    """The organization's secrets, by name."""
    return await in_thread(_all, _actor(request))


@router.post(
    "/secrets", response={201: SecretOut, 400: Problem, 403: Problem, 409: Problem, 429: Problem, 503: Problem}
)
async def create(request: HttpRequest, body: SecretIn) -> Any:
    """Make one for the organization's sandboxes, or those with certain labels."""
    wanted = wanted_secret(body, labels=body.labels)
    secret = await in_thread(secrets.secret_create, wanted=wanted, actor=_actor(request))
    return Status(201, await _told(_actor(request), secret))


@router.post(
    "/secrets/{secret}/rotate", response={200: SecretOut, 400: Problem, 403: Problem, 404: Problem, 503: Problem}
)
async def rotate(request: HttpRequest, secret: str, body: SecretRotation) -> Json:
    """Give it another value, in running sandboxes at once; placeholders stay."""
    row = await in_thread(
        secrets.secret_rotate,
        secret_id=secret,
        value=body.value.get_secret_value(),
        actor=_actor(request),
        hosts=body.hosts,
        places=body.places,
    )
    return await _told(_actor(request), row)


@router.delete("/secrets/{secret}", response={204: None, 403: Problem, 404: Problem})
async def revoke(request: HttpRequest, secret: str) -> Any:
    """Revoke it, in running sandboxes at once: requests go out with the placeholder."""
    await in_thread(secrets.secret_revoke, secret_id=secret, actor=_actor(request))
    await delivery.secrets_spread(organization_id=_actor(request).organization_id)
    return Status(204, None)


@router.get("/sandboxes/{sandbox}/secrets", response={200: list[SandboxSecretOut], 403: Problem, 404: Problem})
async def of_sandbox(request: HttpRequest, sandbox: str) -> list[Json]:
    """The secrets that a sandbox has: its own, and the organization's that are meant for it."""
    return await in_thread(_all, _actor(request), sandbox)


@router.post(
    "/sandboxes/{sandbox}/secrets",
    response={
        201: SandboxSecretOut,
        400: Problem,
        403: Problem,
        404: Problem,
        409: Problem,
        429: Problem,
        503: Problem,
    },
)
async def create_for_sandbox(request: HttpRequest, sandbox: str, body: SandboxSecretIn) -> Any:
    """Make one for a sandbox; it goes before the organization's of that name."""
    secret = await in_thread(_create_for, _actor(request), sandbox, body)
    return Status(201, await _told(_actor(request), secret))
