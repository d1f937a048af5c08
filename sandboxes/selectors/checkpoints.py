"""Reads of a workspace's checkpoints, within the actor's organization."""

from __future__ import annotations

from sandboxes import permissions
from sandboxes.errors import NotFound
from sandboxes.models import Checkpoint, Sandbox, VolumeState
from sandboxes.permissions import Actor


def checkpoint_list(*, actor: Actor, sandbox: Sandbox) -> list[Checkpoint]:
    """A workspace's timeline, newest first."""
    permissions.require(actor, "volume.view", sandbox.organization_id)
    rows = sandbox.checkpoints.select_related("volume").filter(volume__state=VolumeState.READY)
    return list(rows.order_by("-pk"))


def checkpoint_get(*, actor: Actor, sandbox: Sandbox, name: str, action: str = "volume.view") -> Checkpoint:
    """The checkpoint of that id, for an actor who may do `action`. NotFound; Forbidden."""
    permissions.require(actor, action, sandbox.organization_id)
    rows = sandbox.checkpoints.select_related("volume").filter(volume__state=VolumeState.READY)
    found = rows.filter(volume__public_id=name).first()
    if found is None:
        raise NotFound(f"there is no checkpoint {name[:40]!r} of this workspace")
    return found
