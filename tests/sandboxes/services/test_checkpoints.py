"""A workspace's timeline of checkpoints: taken when they are due, gone back to, looked into, and bounded."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from sandboxes import file_lists
from sandboxes.database import in_thread
from sandboxes.errors import Conflict, Forbidden, Invalid, NotFound, QuotaExceeded
from sandboxes.models import (
    Checkpoint,
    CheckpointCause,
    CheckpointFiles,
    Kind,
    Organization,
    Sandbox,
    SandboxState,
    TimelineEntry,
    Volume,
    VolumeKind,
)
from sandboxes.selectors.checkpoints import checkpoint_get, checkpoint_list
from sandboxes.selectors.volumes import volume_list
from sandboxes.services import lifecycle, suspension, volumes
from sandboxes.services.checkpoint_files import file_lists as lists_of
from sandboxes.services.checkpoints import (
    checkpoint_drop,
    checkpoint_every,
    checkpoint_restore,
    checkpoint_take,
    checkpoints_turn,
)
from tests.factories import Team
from tests.sandboxes.services.test_lifecycle import booted
from vm.api import MachineState
from vm.errors import HypervisorError
from vm.fake import FakeNode

HAND = CheckpointCause.HAND


async def workspace(team: Team) -> Sandbox:
    return await booted(team, kind=Kind.WORKSPACE, name="Work")


def wrote(node: FakeNode, sandbox: Sandbox, text: str) -> Path:
    """A file on the workspace's disk."""
    node.disk(sandbox.machine).mkdir(exist_ok=True)
    path = node.disk(sandbox.machine) / "state"
    path.write_text(text)
    return path


async def causes(sandbox: Sandbox) -> list[str]:
    return await in_thread(
        lambda: list(
            Checkpoint.objects.filter(sandbox=sandbox, volume__state="ready")
            .order_by("pk")
            .values_list("cause", flat=True)
        )
    )


async def change(sandbox: Sandbox, **fields: Any) -> None:
    await in_thread(Sandbox.objects.filter(pk=sandbox.pk).update, **fields)


async def test_by_hand_in_whatever_state_it_rests(home: Team, other: Team, node: FakeNode) -> None:
    """Of one that runs, is suspended, or stopped; it is in no list of snapshots; a sandbox has none."""
    sandbox = await workspace(home)
    wrote(node, sandbox, "one")
    first = await checkpoint_take(sandbox=sandbox, cause=HAND, actor=home.member, note="before the upgrade")
    await suspension.sandbox_suspend(sandbox=sandbox, actor=home.member, beside=False)
    await checkpoint_take(sandbox=sandbox, cause=HAND, actor=home.member)
    await lifecycle.sandbox_stop(sandbox=sandbox, actor=home.member, beside=False)
    await checkpoint_take(sandbox=sandbox, cause=CheckpointCause.DEPLOY, actor=home.member)
    listed = await in_thread(checkpoint_list, actor=home.viewer, sandbox=sandbox)
    assert [one.cause for one in listed] == ["deploy", "hand", "hand"]
    assert (listed[-1].note, listed[-1].volume.bootable) == ("before the upgrade", True)
    for kind in (VolumeKind.VOLUME, VolumeKind.SNAPSHOT):
        assert (await in_thread(volume_list, actor=home.viewer, kind=kind))[0] == []
    with pytest.raises(NotFound):
        await in_thread(checkpoint_get, actor=other.owner, sandbox=sandbox, name=first.volume.public_id)
    with pytest.raises(Forbidden):
        await checkpoint_take(sandbox=sandbox, cause=HAND, actor=home.viewer)
    with pytest.raises(NotFound):
        await checkpoint_take(sandbox=sandbox, cause=HAND, actor=other.owner)
    with pytest.raises(Conflict):
        await checkpoint_take(sandbox=await booted(home), cause=HAND, actor=home.member)
    await change(sandbox, state=SandboxState.STARTING)
    with pytest.raises(Conflict):
        await checkpoint_take(sandbox=sandbox, cause=HAND, actor=home.member)


async def test_restore_in_place(home: Team, node: FakeNode) -> None:
    """Its disk is what it was, it runs again if it ran, and what it was before is a checkpoint that undoes it."""
    sandbox = await workspace(home)
    wrote(node, sandbox, "one")
    first = await checkpoint_take(sandbox=sandbox, cause=HAND, actor=home.member)
    wrote(node, sandbox, "two")
    with pytest.raises(Forbidden):
        await checkpoint_restore(sandbox=sandbox, checkpoint=first, actor=home.viewer)
    await checkpoint_restore(sandbox=sandbox, checkpoint=first, actor=home.member)
    async with asyncio.timeout(10):
        while (await node.machine_get(sandbox.machine)).state is not MachineState.READY:
            await asyncio.sleep(0.02)
    state = node.disk(sandbox.machine) / "state"
    assert state.read_text() == "one"
    assert await causes(sandbox) == ["hand", "restore"]
    texts = await in_thread(lambda: [entry.text for entry in TimelineEntry.objects.filter(sandbox=sandbox)])
    assert any(text.startswith("Its disk is that of the checkpoint") for text in texts)
    undo = await in_thread(lambda: Checkpoint.objects.select_related("volume").get(cause="restore"))
    await lifecycle.sandbox_stop(sandbox=sandbox, actor=home.member, beside=False)
    await checkpoint_restore(sandbox=sandbox, checkpoint=undo, actor=home.member)
    assert state.read_text() == "two"
    assert sandbox.state == SandboxState.STOPPED


async def test_a_restore_that_fails_changes_nothing(home: Team, node: FakeNode) -> None:
    """The disk is as it was, the workspace stopped, and its timeline says nothing of a restore."""
    sandbox = await workspace(home)
    wrote(node, sandbox, "one")
    first = await checkpoint_take(sandbox=sandbox, cause=HAND, actor=home.member)
    wrote(node, sandbox, "two")
    node.fail_next("machine_restore", HypervisorError("no"))
    with pytest.raises(Exception, match="could not be restored"):
        await checkpoint_restore(sandbox=sandbox, checkpoint=first, actor=home.member)
    assert (node.disk(sandbox.machine) / "state").read_text() == "two"
    assert await causes(sandbox) == ["hand", "restore"]


async def test_a_new_workspace_of_one(home: Team, node: FakeNode) -> None:
    """It begins as that checkpoint, and goes on when the timeline has dropped it."""
    sandbox = await workspace(home)
    wrote(node, sandbox, "one")
    first = await checkpoint_take(sandbox=sandbox, cause=HAND, actor=home.member)
    made = await booted(home, kind=Kind.WORKSPACE, root=first.volume.public_id)
    assert (node.disk(made.machine) / "state").read_text() == "one"
    await in_thread(checkpoint_drop, checkpoint=first, actor=home.member)
    await volumes.volumes_settle()
    assert await in_thread(lambda: Volume.objects.get(pk=first.volume_id).removed)
    await checkpoints_turn()
    assert await in_thread(Checkpoint.objects.count) == 0
    await lifecycle.sandbox_stop(sandbox=made, actor=home.member, beside=False)
    await in_thread(lifecycle.sandbox_start, sandbox=made, actor=home.member)
    assert (await lifecycle.sandbox_boot(sandbox=made)).state == SandboxState.RUNNING


async def test_taken_when_it_comes_to_rest(home: Team, node: FakeNode) -> None:
    """Once for each rest after it has run, whichever worker looks how often; not again when what rested is stopped."""
    sandbox = await workspace(home)
    await checkpoints_turn()
    assert await causes(sandbox) == []
    await suspension.sandbox_suspend(sandbox=sandbox, actor=home.member, beside=False)
    await checkpoints_turn()
    await checkpoints_turn()
    assert await causes(sandbox) == ["idle"]
    await lifecycle.sandbox_stop(sandbox=sandbox, actor=home.member, beside=False)
    await checkpoints_turn()
    assert await causes(sandbox) == ["idle"]
    await in_thread(lifecycle.sandbox_start, sandbox=sandbox, actor=home.member)
    await lifecycle.sandbox_boot(sandbox=sandbox)
    await lifecycle.sandbox_stop(sandbox=sandbox, actor=home.member, beside=False)
    await checkpoints_turn()
    assert await causes(sandbox) == ["idle", "stop"]


async def test_taken_while_it_is_used(home: Team, node: FakeNode, settings: Any) -> None:
    """Each so many minutes, if somebody did something since; as the workspace has it, else as the installation does."""
    sandbox = await workspace(home)
    long_ago = timezone.now() - timedelta(minutes=61)
    await change(sandbox, started_at=long_ago, active_at=long_ago + timedelta(minutes=1))
    await in_thread(checkpoint_every, sandbox=sandbox, minutes=0, actor=home.member)
    await checkpoints_turn()
    assert await causes(sandbox) == []
    await in_thread(checkpoint_every, sandbox=sandbox, minutes=None, actor=home.member)
    await checkpoints_turn()
    await checkpoints_turn()
    assert await causes(sandbox) == ["timer"]
    # Nobody has used it since
    await in_thread(Volume.objects.filter(kind="checkpoint").update, created_at=long_ago)
    await change(sandbox, checkpoint_tried_at=None, active_at=long_ago)
    await checkpoints_turn()
    assert await causes(sandbox) == ["timer"]
    settings.ATOLL = {**settings.ATOLL, "checkpoints_kept": 0}
    await change(sandbox, active_at=timezone.now())
    await checkpoints_turn()
    assert await causes(sandbox) == ["timer"]
    settings.ATOLL = {**settings.ATOLL, "checkpoints_kept": 10}
    await checkpoints_turn()
    assert await causes(sandbox) == ["timer", "timer"]
    for minutes in (-1, 4, 10_081):
        with pytest.raises(Invalid):
            await in_thread(checkpoint_every, sandbox=sandbox, minutes=minutes, actor=home.member)


async def test_one_that_cannot_be_taken_is_not_tried_at_once_again(home: Team, node: FakeNode) -> None:
    """It leaves no row, and the next try is minutes later."""
    sandbox = await workspace(home)
    await suspension.sandbox_suspend(sandbox=sandbox, actor=home.member, beside=False)
    node.fail_next("machine_snapshot", HypervisorError("no"))
    await checkpoints_turn()
    await checkpoints_turn()
    assert await causes(sandbox) == []
    assert await in_thread(Volume.objects.count) == 0
    past = timezone.now() - timedelta(minutes=6)
    await change(sandbox, checkpoint_tried_at=past, state_since=past - timedelta(minutes=1))
    await checkpoints_turn()
    assert await causes(sandbox) == ["idle"]


async def test_a_timeline_has_a_bound(home: Team, node: FakeNode, settings: Any) -> None:
    """The oldest go first, and those by hand last; their disks go with the next turn, and no day later."""
    settings.ATOLL = {**settings.ATOLL, "checkpoints_kept": 3}
    sandbox = await workspace(home)
    for cause in ("hand", "timer", "timer", "timer", "hand", "hand"):
        await checkpoint_take(sandbox=sandbox, cause=CheckpointCause(cause), actor=home.member)
    assert await causes(sandbox) == ["hand", "hand", "hand"]
    await checkpoint_take(sandbox=sandbox, cause=CheckpointCause.TIMER, actor=home.member)
    assert await causes(sandbox) == ["hand", "hand", "timer"]
    await volumes.volumes_settle()
    assert len(await node.volume_list()) == 3
    await in_thread(Organization.objects.filter(pk=home.organization.pk).update, quota_disk_gib=1)
    with pytest.raises(QuotaExceeded):
        await checkpoint_take(sandbox=sandbox, cause=HAND, actor=home.member)


async def test_it_goes_with_its_workspace(home: Team, node: FakeNode) -> None:
    """A deleted workspace keeps its timeline for as long as it can be restored, and nothing stays after that."""
    sandbox = await workspace(home)
    await checkpoint_take(sandbox=sandbox, cause=HAND, actor=home.member)
    await lifecycle.sandbox_delete(sandbox=sandbox, actor=home.member)
    await checkpoints_turn()
    await volumes.volumes_settle()
    assert len(await node.volume_list()) == 1
    await change(sandbox, deleted_at=timezone.now() - timedelta(hours=25))
    await in_thread(sandbox.refresh_from_db)
    await lifecycle.sandbox_clean(sandbox=sandbox)
    await checkpoints_turn()
    await volumes.volumes_settle()
    await checkpoints_turn()
    assert await node.volume_list() == []
    assert await in_thread(Checkpoint.objects.count) == 0


async def test_looked_into_and_compared(home: Team, node: FakeNode) -> None:
    """A sandbox without network lists each once, and is gone then; what it said is kept."""
    sandbox = await workspace(home)
    path = wrote(node, sandbox, "one")
    first = await checkpoint_take(sandbox=sandbox, cause=HAND, actor=home.member)
    path.write_text("three")
    (path.parent / "more").mkdir()
    second = await checkpoint_take(sandbox=sandbox, cause=HAND, actor=home.member)
    before, after = await lists_of(checkpoints=[first, second], actor=home.member)
    assert [(entry.path, entry.size) for entry in file_lists.within(before, "")[0]] == [("state", 3)]
    changes = [(one.what, one.entry.path) for one in file_lists.differences(before, after)[0]]
    assert changes == [("added", "more"), ("changed", "state")]
    readers = await in_thread(lambda: list(Sandbox.objects.filter(kind=Kind.SANDBOX)))
    assert [(reader.allow_net, reader.state) for reader in readers] != []
    assert readers[0].allow_net == []
    assert await in_thread(CheckpointFiles.objects.count) == 2
    # What is known is shown to whoever may see it, and takes no sandbox
    assert await lists_of(checkpoints=[second, first], actor=home.viewer) == [after, before]
    assert await in_thread(Sandbox.objects.filter(kind=Kind.SANDBOX).count) == 1
    third = await checkpoint_take(sandbox=sandbox, cause=HAND, actor=home.member)
    with pytest.raises(Forbidden):
        await lists_of(checkpoints=[third], actor=home.viewer)
