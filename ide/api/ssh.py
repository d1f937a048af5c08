"""`/api/v1/ssh`: one's own keys for SSH, and certificates that are good for hours."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from ninja import Router, Status

from ide.api.access_schemas import SshCertificateIn, SshCertificateOut, SshKeyIn, SshKeyOut
from ide.api.schemas import Problem
from sandboxes.database import in_thread
from sandboxes.events import timestamp
from sandboxes.models import SshKey
from sandboxes.services import ssh_keys

router = Router(tags=["ssh"])
type Json = dict[str, Any]


def _shown(key: SshKey) -> Json:
    return {
        "id": key.pk,
        "name": key.name,
        "kind": key.kind,
        "public_key": key.public_key,
        "fingerprint": key.fingerprint,
        "created_at": timestamp(key.created_at),
        "last_used_at": timestamp(key.last_used_at),
    }


@router.get("/keys", response={200: list[SshKeyOut], 403: Problem})
async def keys(request: HttpRequest) -> list[Json]:
    """One's own keys, newest first. They log in with a sandbox's id as user name, where one may use it."""
    rows = await in_thread(ssh_keys.ssh_key_list, actor=request.auth)  # type: ignore[attr-defined]
    return [_shown(row) for row in rows]


@router.post("/keys", response={201: SshKeyOut, 400: Problem, 403: Problem, 409: Problem, 429: Problem})
async def add(request: HttpRequest, body: SshKeyIn) -> Any:
    """Another public key, or an authority whose certificates log in as oneself."""
    row = await in_thread(
        ssh_keys.ssh_key_add,
        actor=request.auth,  # type: ignore[attr-defined]
        name=body.name,
        public_key=body.public_key,
        authority=body.authority,
    )
    return Status(201, _shown(row))


@router.delete("/keys/{key}", response={204: None, 403: Problem, 404: Problem})
async def remove(request: HttpRequest, key: int) -> Any:
    """It logs in no more; who is in by it is out within seconds."""
    await in_thread(ssh_keys.ssh_key_remove, actor=request.auth, key_id=key)  # type: ignore[attr-defined]
    return Status(204, None)


@router.post("/certificates", response={201: SshCertificateOut, 400: Problem, 403: Problem})
async def certificate(request: HttpRequest, body: SshCertificateIn) -> Any:
    """A certificate for a key, with which it logs in as oneself for some hours."""
    made = await in_thread(
        ssh_keys.ssh_certificate_issue,
        actor=request.auth,  # type: ignore[attr-defined]
        public_key=body.public_key,
        hours=body.hours,
    )
    return Status(201, {"certificate": made})
