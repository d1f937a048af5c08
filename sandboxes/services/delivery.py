"""Tells machines of their secrets when those change: the node of the values, the guest of what stands for them.

No transaction is open while it does. What cannot be told now is told by the reconciler.
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from sandboxes import runtime
from sandboxes.database import in_thread
from sandboxes.errors import SecretsLocked
from sandboxes.models import Sandbox, SandboxState, SecretDelivery
from sandboxes.selectors.secrets import behind
from sandboxes.services.egress import machine_told
from sandboxes.services.secrets import Bundle
from vm import background
from vm.errors import VmError

log = structlog.get_logger("atoll.secrets")

AT_ONCE = 8
PATIENCE = 5.0
"""Seconds for which whoever changed a secret waits until all machines have been told."""
GUEST_SECONDS = 10.0


async def secrets_push(*, sandbox: Sandbox) -> None:
    """As `machine_told`, and its guest of their names. Repeatable. Any VmError of a node, SecretsLocked."""
    await machine_told(sandbox=sandbox, guest=_tell_guest)


async def secrets_push_or_later(*, sandbox: Sandbox) -> None:
    """The same; what cannot be done now is left to the reconciler."""
    try:
        await secrets_push(sandbox=sandbox)
    except (VmError, SecretsLocked) as error:
        log.warning("a machine is yet to be told of its secrets", sandbox=sandbox.public_id, error=str(error))


async def secrets_spread(*, organization_id: int) -> None:
    """Tell all machines of an organization that are behind, and return once they are told or after a few seconds."""
    places = asyncio.Semaphore(AT_ONCE)

    async def push(sandbox: Sandbox) -> None:
        async with places:
            await secrets_push_or_later(sandbox=sandbox)

    late = await in_thread(behind, organization_id=organization_id)
    if late:
        await asyncio.wait(
            [background.spawn(push(sandbox), name=f"secrets of {sandbox.public_id}") for sandbox in late],
            timeout=PATIENCE,
        )


async def _tell_guest(sandbox: Sandbox, bundle: Bundle) -> bool:
    """Have processes born from now on find the placeholders; False while the guest cannot be asked."""
    before = await in_thread(_names, sandbox)
    if before is None or before == sorted(bundle.env):
        return True
    await in_thread(sandbox.refresh_from_db)
    plain = await in_thread(variables, sandbox)
    if sandbox.state != SandboxState.RUNNING or sandbox.unresponsive:
        return False
    try:
        async with asyncio.timeout(GUEST_SECONDS):
            for name, placeholder in bundle.env.items():
                if name not in before:
                    await _call(sandbox, "envSet", {"key": name, "value": placeholder})
            for name in set(before) - set(bundle.env):
                if name in plain:
                    await _call(sandbox, "envSet", {"key": name, "value": plain[name]})
                else:
                    await _call(sandbox, "envDelete", {"key": name})
    except (VmError, TimeoutError) as error:
        log.info("a guest is yet to be told of its secrets", sandbox=sandbox.public_id, error=str(error))
        return False
    return True


def variables(sandbox: Sandbox) -> dict[str, str]:
    """What its processes find besides secrets: what is so for all of its organization, and what somebody chose."""
    return {"DENO_DEPLOY_ORGANIZATION_ID": sandbox.organization.slug, **sandbox.env}


def _names(sandbox: Sandbox) -> list[str] | None:
    delivery = SecretDelivery.objects.filter(sandbox=sandbox).first()
    return delivery.names if delivery else None


async def _call(sandbox: Sandbox, method: str, params: dict[str, Any]) -> None:
    call = await runtime.GuestCall.begin(await runtime.node().stream_open(sandbox.machine), method, params)
    try:
        await call.reply()
    finally:
        await call.abort()
