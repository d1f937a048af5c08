"""Snapshots with memory: what goes on from one has its size, and nothing with volumes is kept like that."""

from __future__ import annotations

import pytest

from sandboxes.database import in_thread
from sandboxes.errors import Conflict
from sandboxes.models import Volume
from sandboxes.services import volumes
from sandboxes.services.mounts import WantedMount, volume_attach, volume_detach
from sandboxes.services.volumes import Wanted
from tests.factories import Team
from tests.sandboxes.services.test_lifecycle import booted
from vm.fake import FakeNode


async def test_who_goes_on_has_as_much_memory(home: Team, node: FakeNode) -> None:
    """Whatever was asked for; a snapshot of the disk alone has none to give."""
    sandbox = await booted(home, memory_mb=2048)
    with_memory = await volumes.sandbox_snapshot(sandbox=sandbox, slug="session", memory=True, actor=home.member)
    assert with_memory.memory_mb == 2048
    assert (await booted(home, root="session", memory_mb=768)).memory_mb == 2048
    await volumes.sandbox_snapshot(sandbox=sandbox, slug="disk", actor=home.member)
    assert (await booted(home, root="disk", memory_mb=768)).memory_mb == 768


async def test_not_with_volumes(home: Team, node: FakeNode, tmp_path: object) -> None:
    """A memory that knows a volume would go on in another sandbox without it; detached, it can be kept."""
    sandbox = await booted(home)
    await volumes.volume_create(wanted=Wanted("data", "1GB"), actor=home.member)
    await volume_attach(sandbox=sandbox, wanted=WantedMount("data", f"{tmp_path}/data"), actor=home.member)
    with pytest.raises(Conflict, match="detach"):
        await volumes.sandbox_snapshot(sandbox=sandbox, slug="session", memory=True, actor=home.member)
    assert not await in_thread(Volume.objects.filter(slug="session").exists)
    await volume_detach(sandbox=sandbox, volume="data", actor=home.member)
    await volumes.sandbox_snapshot(sandbox=sandbox, slug="session", memory=True, actor=home.member)
