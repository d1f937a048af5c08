"""Volumes on a node in memory: nothing is lost between row and node, whoever dies in between."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import transaction
from django.utils import timezone

from sandboxes import audit
from sandboxes.config import config
from sandboxes.database import in_thread
from sandboxes.errors import (
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    QuotaExceeded,
    SlugInUse,
    Unavailable,
    VolumeInUse,
)
from sandboxes.models import (
    AuditEntry,
    Event,
    Kind,
    Organization,
    Sandbox,
    SandboxState,
    StopCause,
    StrayVolume,
    TimelineEntry,
    Volume,
    VolumeMount,
    VolumeState,
)
from sandboxes.selectors.volumes import volume_get, volume_list
from sandboxes.services import lifecycle, mounts, suspension, volumes
from sandboxes.services.mounts import WantedMount
from sandboxes.services.volumes import Wanted
from tests import factories
from tests.factories import Team
from tests.sandboxes.services.test_lifecycle import booted
from vm.api import VolumeMount as MachineMount
from vm.errors import HostFull, MachineFailed, NodeUnreachable, VolumeBusy
from vm.fake import FakeNode


async def make(team: Team, slug: str = "data", capacity: int | str = "1GB", source: str = "") -> Volume:
    return await volumes.volume_create(wanted=Wanted(slug, capacity, source), actor=team.member)


async def age(volume: Volume, **by: float) -> None:
    """As if it was made and deleted so much earlier."""

    def change() -> None:
        volume.refresh_from_db()
        volume.created_at -= timedelta(**by)
        if volume.deleted_at is not None:
            volume.deleted_at -= timedelta(**by)
        volume.save()

    await in_thread(change)


async def on_node(node: FakeNode) -> list[str]:
    return [info.volume for info in await node.volume_list()]


async def test_a_life(home: Team, other: Team, node: FakeNode) -> None:
    """Made, found by id and slug in its organization only, deleted, and its slug is free at once."""
    volume = await make(home)
    assert (volume.state, volume.capacity, volume.bootable) == (VolumeState.READY, 10**9, False)
    assert volume.public_id.startswith(f"vol_{config()['region']}_")
    assert await on_node(node) == [volume.disk]
    for name in (volume.public_id, "data"):
        assert await in_thread(volume_get, actor=home.viewer, name=name) == volume
        with pytest.raises(NotFound):
            await in_thread(volume_get, actor=other.owner, name=name)
    with pytest.raises(SlugInUse):
        await make(home)
    await make(other)
    with pytest.raises(Forbidden):
        await in_thread(volumes.volume_delete, volume=volume, actor=home.viewer)
    await in_thread(volumes.volume_delete, volume=volume, actor=home.member)
    with pytest.raises(NotFound):
        await in_thread(volume_get, actor=home.viewer, name="data")
    with pytest.raises(NotFound):
        await in_thread(volumes.volume_delete, volume=volume, actor=home.member)
    again = await make(home)
    assert again.public_id != volume.public_id
    actions = await in_thread(lambda: list(AuditEntry.objects.filter(target=volume.public_id).values_list("action")))
    assert actions == [("volume.create",), ("volume.ready",), ("volume.delete",)]
    states = await in_thread(lambda: [e.payload["state"] for e in Event.objects.filter(kind="volume").order_by("id")])
    assert states[:2] == ["creating", "ready"]


async def test_a_deleted_one_can_be_restored_for_a_day(home: Team, node: FakeNode) -> None:
    """Its disk goes a day later and not before; restored before that it is what it was, unless its slug is taken."""
    volume = await make(home)
    await in_thread(volumes.volume_delete, volume=volume, actor=home.member)
    await age(volume, hours=23)
    await volumes.volumes_settle()
    assert await on_node(node) == [volume.disk]
    found = await in_thread(volume_get, actor=home.member, name=volume.public_id, restorable=True)
    taken = await make(home)
    with pytest.raises(SlugInUse):
        await in_thread(volumes.volume_restore, volume=found, actor=home.member)
    await in_thread(volumes.volume_delete, volume=taken, actor=home.member)
    await in_thread(volumes.volume_restore, volume=found, actor=home.member)
    assert await in_thread(volume_get, actor=home.member, name="data") == volume

    await in_thread(volumes.volume_delete, volume=volume, actor=home.member)
    await age(volume, hours=25)
    await volumes.volumes_settle()
    assert await on_node(node) == [taken.disk]
    with pytest.raises(NotFound):
        await in_thread(volume_get, actor=home.member, name=volume.public_id, restorable=True)
    with pytest.raises(NotFound):
        await in_thread(volumes.volume_restore, volume=volume, actor=home.member)


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        (Wanted("UPPER", "1GB"), "slug"),
        (Wanted("data", "1KB"), "capacity"),
        (Wanted("data", "1GB", "builtin:debian-13"), "capacity"),
    ],
)
async def test_what_cannot_be(home: Team, node: FakeNode, wanted: Wanted, field: str) -> None:
    """Refused with the field, before anything is made."""
    with pytest.raises(Invalid) as refused:
        await volumes.volume_create(wanted=wanted, actor=home.member)
    assert refused.value.fields["field"] == field
    assert await on_node(node) == []


async def test_an_unknown_source(home: Team, node: FakeNode) -> None:
    """A snapshot that is not there, and a volume, are no sources."""
    volume = await make(home)
    for source in ("nothing", volume.slug, volume.public_id):
        with pytest.raises(NotFound):
            await make(home, "second", source=source)


async def test_a_volume_counts_against_the_disk_quota(home: Team, node: FakeNode) -> None:
    """With what it may grow to, also while it can still be restored."""
    await in_thread(Organization.objects.filter(pk=home.organization.pk).update, quota_disk_gib=3)
    volume = await make(home, capacity="2GiB")
    with pytest.raises(QuotaExceeded):
        await make(home, "second", capacity="2GiB")
    await in_thread(volumes.volume_delete, volume=volume, actor=home.member)
    with pytest.raises(QuotaExceeded):
        await make(home, "second", capacity="2GiB")


async def test_a_node_that_cannot(home: Team, node: FakeNode) -> None:
    """A full or silent node leaves no row, and the reason is told."""
    for error in (HostFull("no room for a disk"), NodeUnreachable("it is down")):
        node.fail_next("volume_create", error)
        with pytest.raises(Unavailable, match=error.detail):
            await make(home)
    assert await in_thread(Volume.objects.count) == 0
    await make(home)


async def test_whoever_made_it_died(home: Team, node: FakeNode) -> None:
    """A row that nobody finishes becomes ready if the node has the volume, and goes if it has not."""
    made, lost = await make(home, "made"), await make(home, "lost")
    await in_thread(Volume.objects.update, state=VolumeState.CREATING)
    await node.volume_remove(lost.disk)
    await volumes.volumes_settle()
    assert await in_thread(Volume.objects.filter(state=VolumeState.CREATING).count) == 2
    for volume in (made, lost):
        await age(volume, minutes=5)
    await volumes.volumes_settle()
    assert [row.slug for row in (await in_thread(volume_list, actor=home.viewer))[0]] == ["made"]
    assert await in_thread(Volume.objects.count) == 1


async def test_what_no_row_names(home: Team, node: FakeNode) -> None:
    """A volume of the node that is nobody's is kept for hours, in case an older database was put back."""
    kept = await make(home)
    stray = "f" * 32
    await node.volume_create(stray, capacity=10**9)
    await volumes.volumes_settle()
    await volumes.volumes_settle()
    assert stray in await on_node(node)
    hours = timedelta(hours=config()["stray_hours"])
    await in_thread(lambda: StrayVolume.objects.update(since=timezone.now() - hours))
    await volumes.volumes_settle()
    assert await on_node(node) == [kept.disk]
    await volumes.volumes_settle()
    assert not await in_thread(StrayVolume.objects.exists)


async def test_pages(home: Team, node: FakeNode) -> None:
    """Newest first, every one once, with a part of the slug as a filter."""
    for number in range(5):
        await make(home, f"v{number}-{'odd' if number % 2 else 'even'}")
    seen: list[str] = []
    cursor = ""
    while True:
        rows, cursor = await in_thread(volume_list, actor=home.viewer, limit=2, cursor=cursor)
        seen += [row.slug for row in rows]
        if not cursor:
            break
    assert seen == ["v4-even", "v3-odd", "v2-even", "v1-odd", "v0-even"]
    rows, cursor = await in_thread(volume_list, actor=home.viewer, limit=2, search="odd")
    assert ([row.slug for row in rows], cursor) == (["v3-odd", "v1-odd"], "")
    for bad in ({"limit": 0}, {"limit": 101}, {"cursor": "x"}):
        with pytest.raises(Invalid):
            await in_thread(volume_list, actor=home.viewer, **bad)


@pytest.fixture
def place(tmp_path: Path) -> str:
    """Where a node in memory mounts something: a path of this host."""
    return str(tmp_path / "mnt")


async def test_one_sandbox_at_a_time(home: Team, node: FakeNode, place: str) -> None:
    """Taken at create, refused to a second, kept over a suspend, and given up when the first has stopped."""
    volume = await make(home)
    wanted = [WantedMount("data", place)]
    first = await booted(home, volumes=wanted)
    assert (await node.volume_list())[0].used_by == (first.machine,)
    with pytest.raises(VolumeInUse, match=first.public_id):
        await booted(home, volumes=wanted)
    assert await in_thread(Sandbox.objects.count) == 1
    await suspension.sandbox_suspend(sandbox=first, actor=home.member, beside=False)
    with pytest.raises(VolumeInUse):
        await booted(home, volumes=wanted)
    with pytest.raises(VolumeInUse):
        await in_thread(volumes.volume_delete, volume=volume, actor=home.member)
    await lifecycle.sandbox_stop(sandbox=first, actor=home.member, beside=False)
    assert (await booted(home, volumes=wanted)).state == SandboxState.RUNNING


async def test_a_create_waits_for_a_volume(home: Team, node: FakeNode, place: str) -> None:
    """One that is given up meanwhile is had; of two who wait one gets it."""
    await make(home)
    first = await booted(home, volumes=[WantedMount("data", place)])

    async def create() -> Sandbox:
        wanted = {"volumes": [WantedMount("data", place)]}
        return await mounts.when_free(lambda: in_thread(factories.sandbox, home, **wanted))

    waiting = [asyncio.ensure_future(create()) for _ in range(2)]
    await asyncio.sleep(0.5)
    await lifecycle.sandbox_stop(sandbox=first, actor=home.member, beside=False)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(result) for result in results} == {Sandbox, VolumeInUse}


async def test_a_workspace_takes_its_volume_again(home: Team, other: Team, node: FakeNode, place: str) -> None:
    """At its start; refused while another sandbox has it, and told to restore one that was deleted."""
    volume = await make(home)
    workspace = await booted(home, kind=Kind.WORKSPACE, volumes=[WantedMount("data", place)])
    await lifecycle.sandbox_stop(sandbox=workspace, actor=home.member, beside=False)
    taker = await booted(home, volumes=[WantedMount("data", place)])
    with pytest.raises(VolumeInUse):
        await in_thread(lifecycle.sandbox_start, sandbox=workspace, actor=home.member)
    await lifecycle.sandbox_stop(sandbox=taker, actor=home.member, beside=False)
    await in_thread(volumes.volume_delete, volume=volume, actor=home.member)
    with pytest.raises(Conflict, match="deleted"):
        await in_thread(lifecycle.sandbox_start, sandbox=workspace, actor=home.member)
    await mounts.volume_detach(sandbox=workspace, volume="data", actor=home.member)
    await in_thread(lifecycle.sandbox_start, sandbox=workspace, actor=home.member)
    with pytest.raises(NotFound):
        await booted(other, volumes=[WantedMount(volume.public_id, place)])


async def test_attached_and_detached_while_it_runs(home: Team, node: FakeNode, place: str) -> None:
    """What fails on the host leaves no trace; what nobody answered is undone later."""
    volume = await make(home)
    sandbox = await booted(home)
    for error, raised in ((MachineFailed("no file system"), Conflict), (NodeUnreachable("down"), Unavailable)):
        node.fail_next("volume_attach", error)
        with pytest.raises(raised, match=error.detail):
            await mounts.volume_attach(sandbox=sandbox, wanted=WantedMount("data", place), actor=home.member)
        assert not await in_thread(VolumeMount.objects.exists)
    await node.volume_attach(sandbox.machine, MachineMount(volume.disk, place))
    await volumes.volumes_settle()
    assert (await node.volume_list())[0].used_by == ()
    await mounts.volume_attach(sandbox=sandbox, wanted=WantedMount("data", place), actor=home.member)
    await volumes.volumes_settle()
    assert (await node.volume_list())[0].used_by == (sandbox.machine,)
    for bad in (WantedMount("data", f"{place}2"), WantedMount("data", f"{place}/inner")):
        with pytest.raises((Conflict, Invalid)):
            await mounts.volume_attach(sandbox=sandbox, wanted=bad, actor=home.member)
    with pytest.raises(Conflict, match="snapshot"):
        await mounts.volume_attach(sandbox=sandbox, wanted=WantedMount("data", "/x", True), actor=home.member)
    fork = await suspension.sandbox_fork(sandbox=sandbox, actor=home.member)
    assert fork.note == f"what is mounted at {place} is a copy of that moment, which goes when it stops"
    assert not await in_thread(fork.mounts.exists)
    assert (await node.volume_list())[0].used_by == (sandbox.machine,)
    node.fail_next("volume_detach", VolumeBusy("in use by sleep (12)"))
    with pytest.raises(Conflict, match="sleep"):
        await mounts.volume_detach(sandbox=sandbox, volume="data", actor=home.member)
    with pytest.raises(Forbidden):
        await mounts.volume_detach(sandbox=sandbox, volume="data", actor=home.viewer)
    await mounts.volume_detach(sandbox=sandbox, volume=volume.public_id, actor=home.member)
    assert (await node.volume_list())[0].used_by == ()
    texts = await in_thread(lambda: [entry.text for entry in TimelineEntry.objects.filter(sandbox=sandbox)])
    assert any("mounted" in text for text in texts), texts


async def test_a_machine_that_cannot_have_its_volume(home: Team, node: FakeNode, tmp_path: Path) -> None:
    """It does not start, and says why; the volume is free again."""
    await make(home)
    (tmp_path / "file").touch()
    sandbox = await booted(home, volumes=[WantedMount("data", str(tmp_path / "file" / "x"))])
    assert (sandbox.state, sandbox.stop_cause) == (SandboxState.STOPPED, StopCause.BOOT_FAILED)
    assert "could not be mounted" in sandbox.stop_detail
    assert (await node.volume_list())[0].used_by == ()


async def test_snapshots(home: Team, other: Team, node: FakeNode, place: str) -> None:
    """One namespace with volumes; made into volumes; mounted read-only by any number; its volume may go, and it may."""
    volume = await make(home, capacity="2GB")
    writer = await booted(home, volumes=[WantedMount("data", place)])
    Path(place, "file").write_text("one")
    with pytest.raises(SlugInUse):
        await volumes.volume_snapshot(volume=volume, slug="data", actor=home.member)
    with pytest.raises(Forbidden):
        await volumes.volume_snapshot(volume=volume, slug="snap", actor=home.viewer)
    node.fail_next("volume_snapshot", VolumeBusy("it is suspended"))
    with pytest.raises(Conflict, match="suspended"):
        await volumes.volume_snapshot(volume=volume, slug="snap", actor=home.member)
    snapshot = await volumes.volume_snapshot(volume=volume, slug="snap", actor=home.member)
    Path(place, "file").write_text("two")
    assert snapshot.public_id.startswith("snp_")
    assert (snapshot.source, snapshot.capacity, snapshot.bootable) == (volume, 2 * 10**9, False)
    readers = [await booted(home, volumes=[WantedMount(name, f"{place}-{name}", True)]) for name in ("snap", "data")]
    assert [Path(f"{place}-{name}", "file").read_text() for name in ("snap", "data")] == ["one", "one"]
    child = await make(home, "child", "1GB", "snap")
    assert (child.base, child.capacity) == (snapshot, 2 * 10**9)
    with pytest.raises(NotFound):
        await make(other, "child", "1GB", snapshot.public_id)
    await in_thread(volumes.volume_delete, volume=snapshot, actor=home.member)
    with pytest.raises(NotFound):
        await make(home, "late", "1GB", "snap")
    with pytest.raises(NotFound):
        await in_thread(volume_get, actor=home.member, name="snap", kind=None)
    for sandbox in (writer, *readers):
        await lifecycle.sandbox_stop(sandbox=sandbox, actor=home.member, beside=False)
    await in_thread(volumes.volume_delete, volume=volume, actor=home.member)
    with pytest.raises(NotFound):
        await volumes.volume_snapshot(volume=volume, slug="late", actor=home.member)
    for row in (snapshot, volume):
        await age(row, hours=25)
    await volumes.volumes_settle()
    assert await on_node(node) == [child.disk]
    assert (await booted(home, volumes=[WantedMount("child", place)])).state == SandboxState.RUNNING
    assert Path(place, "file").read_text() == "one"


async def test_boot_from_a_volume(home: Team, other: Team, node: FakeNode) -> None:
    """Its alone, kept from one to the next; a snapshot boots any number; what has no system is refused."""
    volume = await make(home, "system", "10GB", "builtin:debian-13")
    await make(home, "data")
    for name, error in (("data", Invalid), ("nothing", NotFound)):
        with pytest.raises(error):
            await booted(home, root=name)
    with pytest.raises(NotFound):
        await booted(other, root=volume.public_id)
    first = await booted(home, root="system")
    assert first.state == SandboxState.RUNNING
    node.disk(first.machine).mkdir(exist_ok=True)
    (node.disk(first.machine) / "kept").write_text("one")
    with pytest.raises(VolumeInUse):
        await booted(home, root="system")
    with pytest.raises(VolumeInUse):
        await booted(home, volumes=[WantedMount("system", "/x")])
    with pytest.raises(Conflict):
        await mounts.volume_attach(sandbox=first, wanted=WantedMount("system", "/x"), actor=home.member)
    fork = await suspension.sandbox_fork(sandbox=first, actor=home.member)
    assert (fork.root, fork.note) == (None, "")
    assert (node.disk(fork.machine) / "kept").read_text() == "one"
    with pytest.raises(VolumeInUse):
        await in_thread(volumes.volume_delete, volume=volume, actor=home.member)
    await volumes.volumes_settle()
    assert [one.used_by for one in await node.volume_list() if one.volume == volume.disk] == [(first.machine,)]
    snapshot = await volumes.volume_snapshot(volume=volume, slug="snap", actor=home.member)
    assert snapshot.bootable
    readers = [await booted(home, root="snap") for _ in range(2)]
    assert [(node.disk(one.machine) / "kept").read_text() for one in readers] == ["one", "one"]
    (node.disk(readers[0].machine) / "kept").write_text("mine")
    await lifecycle.sandbox_stop(sandbox=first, actor=home.member, beside=False)
    second = await booted(home, root="system", kind=Kind.WORKSPACE)
    assert (node.disk(second.machine) / "kept").read_text() == "one"
    await lifecycle.sandbox_stop(sandbox=second, actor=home.member, beside=False)
    await in_thread(volumes.volume_delete, volume=volume, actor=home.member)
    with pytest.raises(Conflict, match="deleted"):
        await in_thread(lifecycle.sandbox_start, sandbox=second, actor=home.member)


async def test_a_volume_grows(home: Team, node: FakeNode) -> None:
    """Row and node together, within the quota; never smaller; what failed is as it was."""
    volume = await make(home)
    for bad in ("500MB", "1TB", "30GB"):
        with pytest.raises(Invalid):
            await volumes.volume_grow(volume=volume, capacity=bad, actor=home.member)
    node.fail_next("volume_grow", VolumeBusy("it is suspended"))
    with pytest.raises(Conflict, match="suspended"):
        await volumes.volume_grow(volume=volume, capacity="2GB", actor=home.member)
    await in_thread(volume.refresh_from_db)
    assert volume.capacity == 10**9
    await volumes.volume_grow(volume=volume, capacity="2GB", actor=home.member)
    assert (await node.volume_list())[0].capacity == volume.capacity == 2 * 10**9
    await in_thread(Organization.objects.filter(pk=home.organization.pk).update, quota_disk_gib=3)
    with pytest.raises(QuotaExceeded):
        await volumes.volume_grow(volume=volume, capacity="4GB", actor=home.member)


async def test_a_snapshot_of_a_sandbox(home: Team, other: Team, node: FakeNode) -> None:
    """Of one that runs, which goes on, or of a disk that is kept; others boot from it; what fails leaves no row."""
    sandbox = await booted(home, kind=Kind.WORKSPACE)
    node.disk(sandbox.machine).mkdir(exist_ok=True)
    (node.disk(sandbox.machine) / "kept").write_text("one")
    for error, raised in ((VolumeBusy("a suspend"), Conflict), (NodeUnreachable("down"), Unavailable)):
        node.fail_next("machine_snapshot", error)
        with pytest.raises(raised, match=error.detail):
            await volumes.sandbox_snapshot(sandbox=sandbox, slug="snap", actor=home.member)
    assert not await in_thread(Volume.objects.exists)
    with pytest.raises(Forbidden):
        await volumes.sandbox_snapshot(sandbox=sandbox, slug="snap", actor=home.viewer)
    with pytest.raises(NotFound):
        await volumes.sandbox_snapshot(sandbox=sandbox, slug="snap", actor=other.member)
    snapshot = await volumes.sandbox_snapshot(sandbox=sandbox, slug="snap", actor=home.member)
    assert (snapshot.bootable, snapshot.source, snapshot.taken_of) == (True, None, sandbox.public_id)
    (node.disk(sandbox.machine) / "kept").write_text("two")
    child = await booted(home, root="snap")
    assert (node.disk(child.machine) / "kept").read_text() == "one"
    await lifecycle.sandbox_stop(sandbox=sandbox, actor=home.member, beside=False)
    with pytest.raises(Conflict, match="one that runs"):
        await volumes.sandbox_snapshot(sandbox=sandbox, slug="late", actor=home.member, memory=True)
    late = await volumes.sandbox_snapshot(sandbox=sandbox, slug="late", actor=home.member)
    assert (await booted(home, root="late")).boots_from == late.public_id
    await lifecycle.sandbox_stop(sandbox=child, actor=home.member, beside=False)
    with pytest.raises(Conflict, match="stopped"):
        await volumes.sandbox_snapshot(sandbox=child, slug="later", actor=home.member)


@pytest.mark.django_db(transaction=True)
async def test_a_change_told_while_it_is_deleted(home: Team, node: FakeNode) -> None:
    """Whoever has the row and tells of it waits for nobody who has the organization and waits for the row."""
    volume = await make(home)
    changed, asked = threading.Event(), threading.Event()

    def change() -> None:
        with transaction.atomic():
            Volume.objects.filter(pk=volume.pk).update(allocated=1)
            changed.set()
            asked.wait(10)
            time.sleep(0.3)  # the other has come to the row by now
            audit.record(
                actor=home.member, organization_id=volume.organization_id, action="volume.test", target=volume.public_id
            )

    def delete() -> None:
        asked.set()
        volumes.volume_delete(volume=volume, actor=home.member)

    changing = asyncio.ensure_future(in_thread(change))
    await asyncio.to_thread(changed.wait, 10)
    await asyncio.gather(changing, in_thread(delete))
    assert (await in_thread(Volume.objects.get, pk=volume.pk)).state == VolumeState.DELETED
