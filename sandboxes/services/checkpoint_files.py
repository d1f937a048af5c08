"""Looks into checkpoints: which files they hold, and how two of them differ.

Their file systems are a user's, so no host ever reads one: a sandbox of the organization, without any network, mounts
them read-only, lists what is there, and ends. What it said is kept, since a checkpoint never changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from django.utils import timezone

from sandboxes import permissions
from sandboxes.database import in_thread
from sandboxes.errors import Conflict, Unavailable
from sandboxes.file_lists import FORMAT, LARGEST, packed
from sandboxes.models import Checkpoint, CheckpointFiles, Kind, Sandbox, SandboxState
from sandboxes.permissions import SYSTEM, Actor
from sandboxes.services import creation, lifecycle
from sandboxes.services.creation import Wanted
from sandboxes.services.mounts import WantedMount
from sandboxes.services.streams import GuestFailed, GuestInvalid, GuestUnknown, guest_call

_PATIENCE = 180.0
_LIFETIME = timedelta(minutes=5)


async def file_lists(*, checkpoints: Sequence[Checkpoint], actor: Actor) -> list[bytes]:
    """The packed list (sandboxes/file_lists.py) of each; what nobody has looked at yet takes a sandbox some seconds.

    Forbidden; QuotaExceeded where there is no room for it; Unavailable; Conflict for more files than are listed.
    """
    for checkpoint in checkpoints:
        permissions.require(actor, "volume.view", checkpoint.volume.organization_id)
    missing = {one.pk: one for one in checkpoints if await in_thread(_stored, one) is None}
    if missing:
        async with _reader(list(missing.values()), actor) as sandbox:
            for checkpoint in missing.values():
                listing = packed(await _listed(sandbox, _place(checkpoint)))
                await in_thread(_store, checkpoint, listing)
    found = [await in_thread(_stored, one) for one in checkpoints]
    return [one or b"" for one in found]


def _stored(checkpoint: Checkpoint) -> bytes | None:
    row = CheckpointFiles.objects.filter(checkpoint=checkpoint).first()
    return None if row is None else bytes(row.listing)


def _store(checkpoint: Checkpoint, listing: bytes) -> None:
    CheckpointFiles.objects.get_or_create(checkpoint=checkpoint, defaults={"listing": listing})


def _place(checkpoint: Checkpoint) -> str:
    return f"/mnt/{checkpoint.volume.public_id}"


@asynccontextmanager
async def _reader(checkpoints: Sequence[Checkpoint], actor: Actor) -> AsyncIterator[Sandbox]:
    """A sandbox that has these read-only, for as long as this lasts."""
    wanted = Wanted(
        kind=Kind.SANDBOX,
        name="Looks into checkpoints",
        allow_net=[],
        stop_at=timezone.now() + _LIFETIME,
        volumes=[WantedMount(one.volume.public_id, _place(one), read_only=True) for one in checkpoints],
    )
    sandbox = await in_thread(creation.sandbox_create, wanted=wanted, actor=actor)
    try:
        await lifecycle.sandbox_boot(sandbox=sandbox)
        await in_thread(sandbox.refresh_from_db)
        if sandbox.state != SandboxState.RUNNING:
            raise Unavailable(f"the checkpoint could not be looked into: {sandbox.stop_detail or sandbox.state}")
        yield sandbox
    finally:
        await lifecycle.sandbox_stop(sandbox=sandbox, actor=SYSTEM, detail="it has looked")


async def _listed(sandbox: Sandbox, place: str) -> bytes:
    """What `find` says of a mounted disk, as the guest's user: what only its root may read has no name here."""
    # -H: follow the place itself; -xdev: what was mounted in it is not on it
    arguments = ["-H", f"{place}/", "-xdev", "-mindepth", "1", "-printf", FORMAT]
    params = {"command": "find", "args": arguments, "stdin": "null", "stdout": "piped", "stderr": "null"}
    try:
        async with asyncio.timeout(_PATIENCE):
            async with await guest_call(sandbox=sandbox, method="spawn", params=params, actor=SYSTEM) as call:
                started = await call.reply()
            reading = await guest_call(
                sandbox=sandbox, method="process.stdout", params={"pid": started["pid"]}, actor=SYSTEM
            )
            async with reading:
                await reading.reply()
                told = await reading.read_all(LARGEST)
    except (TimeoutError, GuestFailed, GuestInvalid, GuestUnknown, KeyError, TypeError) as error:
        raise Unavailable("the checkpoint's files could not be listed") from error
    if told is None:
        raise Conflict("it has more files than can be listed: make a workspace of it and look there")
    return told
