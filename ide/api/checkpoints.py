"""`/api/v1/sandboxes/{sandbox}/checkpoints`: a workspace's timeline, looked into, compared, and gone back to."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from django.http import HttpRequest
from ninja import Field, Router, Schema, Status

from ide.api.schemas import Problem, SandboxOut
from sandboxes import file_lists
from sandboxes.database import in_thread
from sandboxes.events import checkpoint_payload, sandbox_payload
from sandboxes.models import Checkpoint, CheckpointCause, Sandbox
from sandboxes.permissions import Actor
from sandboxes.selectors.checkpoints import checkpoint_get, checkpoint_list
from sandboxes.selectors.sandboxes import sandbox_get
from sandboxes.services import checkpoint_files, checkpoints

router = Router(tags=["checkpoints"])
type Json = dict[str, Any]


class CheckpointOut(Schema):
    """What a workspace's disk held at one moment. Sizes in bytes: `allocated` by itself, `flattened` with the rest."""

    id: str
    cause: Literal["idle", "stop", "hand", "timer", "restore", "deploy"]
    note: str
    created_at: str
    by: str
    allocated: int
    flattened: int
    capacity: int


class CheckpointIn(Schema):
    """What one wants to remember of it."""

    note: str = Field(default="", max_length=checkpoints.NOTE)


class CheckpointEvery(Schema):
    """Minutes after which one is taken while the workspace is used; 0: never, null: as the installation does."""

    minutes: int | None


class FileOut(Schema):
    """A file; its size in bytes, `changed` in epoch seconds."""

    path: str
    kind: Literal["file", "directory", "link", "other"]
    mode: str
    size: int
    changed: float


class FilesOut(Schema):
    """What lies in a directory; `more`: not all of it is told."""

    files: list[FileOut]
    more: bool


class DifferenceOut(FileOut):
    """A file that is not the same in both."""

    what: Literal["added", "removed", "changed"]


class DifferencesOut(Schema):
    """What became of files from one checkpoint to another; `more`: not all of it is told."""

    files: list[DifferenceOut]
    more: bool


def _actor(request: HttpRequest) -> Actor:
    actor: Actor = request.auth  # type: ignore[attr-defined]
    return actor


async def _sandbox(request: HttpRequest, sandbox: str) -> Sandbox:
    return await in_thread(sandbox_get, actor=_actor(request), public_id=sandbox, action="sandbox.view")


async def _one(request: HttpRequest, sandbox: Sandbox, name: str) -> Checkpoint:
    return await in_thread(checkpoint_get, actor=_actor(request), sandbox=sandbox, name=name)


@router.get("/{sandbox}/checkpoints", response={200: list[CheckpointOut], 404: Problem})
async def checkpoint_timeline(request: HttpRequest, sandbox: str) -> list[Json]:
    """A workspace's checkpoints, newest first."""
    row = await _sandbox(request, sandbox)
    return [checkpoint_payload(one) for one in await in_thread(checkpoint_list, actor=_actor(request), sandbox=row)]


@router.post(
    "/{sandbox}/checkpoints",
    response={201: CheckpointOut, 400: Problem, 404: Problem, 409: Problem, 429: Problem, 503: Problem},
)
async def checkpoint_make(request: HttpRequest, sandbox: str, body: CheckpointIn) -> Any:
    """Take one now, in whatever state the workspace is."""
    made = await checkpoints.checkpoint_take(
        sandbox=await _sandbox(request, sandbox), cause=CheckpointCause.HAND, actor=_actor(request), note=body.note
    )
    return Status(201, checkpoint_payload(made))


@router.put("/{sandbox}/checkpoints/every", response={200: SandboxOut, 400: Problem, 404: Problem})
async def checkpoint_every(request: HttpRequest, sandbox: str, body: CheckpointEvery) -> Json:
    """Have one taken by itself while the workspace is used."""
    row = await _sandbox(request, sandbox)
    changed = await in_thread(checkpoints.checkpoint_every, sandbox=row, minutes=body.minutes, actor=_actor(request))
    return sandbox_payload(changed)


@router.delete("/{sandbox}/checkpoints/{checkpoint}", response={204: None, 404: Problem})
async def checkpoint_delete(request: HttpRequest, sandbox: str, checkpoint: str) -> Any:
    """Take one out of the timeline for good; workspaces that were made from it stay whole."""
    found = await _one(request, await _sandbox(request, sandbox), checkpoint)
    await in_thread(checkpoints.checkpoint_drop, checkpoint=found, actor=_actor(request))
    return Status(204, None)


@router.post(
    "/{sandbox}/checkpoints/{checkpoint}/restore",
    response={200: SandboxOut, 404: Problem, 409: Problem, 429: Problem, 503: Problem},
)
async def checkpoint_restore(request: HttpRequest, sandbox: str, checkpoint: str) -> Json:
    """Let the workspace's disk be what it was then; what it is now becomes a checkpoint before."""
    row = await _sandbox(request, sandbox)
    found = await _one(request, row, checkpoint)
    return sandbox_payload(await checkpoints.checkpoint_restore(sandbox=row, checkpoint=found, actor=_actor(request)))


@router.get(
    "/{sandbox}/checkpoints/{checkpoint}/files",
    response={200: FilesOut, 400: Problem, 404: Problem, 409: Problem, 429: Problem, 503: Problem},
)
async def checkpoint_browse(request: HttpRequest, sandbox: str, checkpoint: str, path: str = "") -> Json:
    """What lies in one directory of it. The first look takes a sandbox some seconds."""
    found = await _one(request, await _sandbox(request, sandbox), checkpoint)
    (listing,) = await checkpoint_files.file_lists(checkpoints=[found], actor=_actor(request))
    files, more = await in_thread(file_lists.within, listing, path)
    return {"files": [asdict(file) for file in files], "more": more}


@router.get(
    "/{sandbox}/checkpoints/{checkpoint}/differences",
    response={200: DifferencesOut, 404: Problem, 409: Problem, 429: Problem, 503: Problem},
)
async def checkpoint_compare(request: HttpRequest, sandbox: str, checkpoint: str, since: str) -> Json:
    """What became of files from the checkpoint `since` to this one. The first look takes a sandbox some seconds."""
    row = await _sandbox(request, sandbox)
    both = [await _one(request, row, name) for name in (since, checkpoint)]
    before, after = await checkpoint_files.file_lists(checkpoints=both, actor=_actor(request))
    found, more = await in_thread(file_lists.differences, before, after)
    return {"files": [{**asdict(one.entry), "what": one.what} for one in found], "more": more}
