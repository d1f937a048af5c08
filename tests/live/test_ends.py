"""Ends that nobody asked for, on a real machine: its workspace keeps what docs/lifecycle.md says, and says why.

One machine lives through all of them, in the order of the tests, with a row of its own in each.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from sandboxes import reconcile, runtime, sentences, states
from sandboxes.database import in_thread
from sandboxes.errors import QuotaExceeded
from sandboxes.models import Kind, Sandbox, SandboxState, StopCause
from sandboxes.services import changes, lifecycle, suspension
from sandboxes.services.spending import spending_enforce
from tests import factories
from tests.factories import Team
from tests.live.nodes import NodeProcess, boot, execute, start_command
from tests.memory_limits import hardly_more_memory
from tests.sandboxes.services.test_spending import cap, spend
from vm.host.cgroups import ROOT

pytestmark = pytest.mark.live
PATIENCE = 90.0
MACHINE = secrets.token_hex(16)


@pytest.fixture(scope="module")
def process() -> Iterator[NodeProcess]:
    """A node with the one machine."""
    started = NodeProcess.cloning()
    started.start()
    asyncio.run(boot(started.client, MACHINE))
    yield started
    started.close()


@dataclass
class Work:
    """A workspace on the machine, in which something is written on disk and in memory."""

    process: NodeProcess
    team: Team
    sandbox: Sandbox
    note: str

    async def begin(self) -> None:
        script = f"echo {self.note} > ~/note && sync ~/note && echo {self.note} > /dev/shm/note"
        assert (await execute(self.process.client, MACHINE, "sh", "-c", script))[0] == 0

    async def becomes(self, state: SandboxState, turn: Callable[[], Awaitable[object]]) -> None:
        """Let the worker have its turns until the row is in that state."""
        until = time.monotonic() + PATIENCE
        while self.sandbox.state != state:
            assert time.monotonic() < until, (self.sandbox.state, sentences.state_reason(self.sandbox))
            await turn()
            await asyncio.sleep(0.1)
            await in_thread(self.sandbox.refresh_from_db)

    def says(self, cause: StopCause, words: str, then: str) -> None:
        """What happened, when, and what to press."""
        assert self.sandbox.stop_cause == cause, (self.sandbox.stop_cause, self.sandbox.stop_detail)
        assert words in sentences.state_reason(self.sandbox)
        assert self.sandbox.stopped_at is not None
        assert self.sandbox.stopped_by == "atoll"
        assert states.next_step(self.sandbox) == then

    async def found(self) -> tuple[str, str]:
        """What is on its disk and in its memory."""
        script = "cat ~/note; cat /dev/shm/note || true"
        _code, output = await execute(self.process.client, MACHINE, "sh", "-c", script)
        disk, _, memory = output.decode().partition("\n")
        return disk.strip(), memory.strip()

    async def resumed(self) -> None:
        await suspension.sandbox_wake(sandbox=self.sandbox, actor=self.team.member, beside=False)
        assert self.sandbox.state == SandboxState.RUNNING, sentences.state_reason(self.sandbox)
        assert await self.found() == (self.note, self.note)

    async def started(self) -> None:
        await in_thread(lifecycle.sandbox_start, sandbox=self.sandbox, actor=self.team.member)
        await lifecycle.sandbox_boot(sandbox=self.sandbox)
        assert self.sandbox.state == SandboxState.RUNNING, sentences.state_reason(self.sandbox)
        assert await self.found() == (self.note, "")


@pytest.fixture
async def work(home: Team, process: NodeProcess) -> Any:
    """The machine with a row that has been idle for a quarter of an hour."""
    runtime.use(lambda: process.client)
    row = await in_thread(
        factories.row,
        home,
        kind=Kind.WORKSPACE,
        name="work",
        machine=MACHINE,
        memory_mb=512,
        vcpus=1,
        state=SandboxState.RUNNING,
        state_since=timezone.now() - timedelta(minutes=15),
        creator_id=home.member.user_id,
    )
    made = Work(process, home, row, secrets.token_hex(8))
    await made.begin()
    yield made
    runtime.use(None)


async def test_idle(work: Work) -> None:
    """Nobody used it for its time: suspended, and it goes on with its memory."""
    await reconcile.reconcile()
    await in_thread(work.sandbox.refresh_from_db)
    assert work.sandbox.state == SandboxState.RUNNING, "its time is half an hour"
    await in_thread(changes.sandbox_change, sandbox=work.sandbox, actor=work.team.member, idle_minutes=5)
    await work.becomes(SandboxState.SUSPENDED, reconcile.reconcile)
    work.says(StopCause.IDLE, "nobody used it", "resume")
    await work.resumed()


async def test_low_memory(work: Work, settings: Any) -> None:
    """The host has less memory than it should: the one that was idle longest is suspended, and goes on."""
    usual = settings.ATOLL
    settings.ATOLL = {**usual, "low_memory_mib": 2**40}
    await work.becomes(SandboxState.SUSPENDED, reconcile.reconcile)
    settings.ATOLL = usual
    work.says(StopCause.LOW_MEMORY, "the host was short of memory", "resume")
    await work.resumed()


async def test_spending_cap(work: Work) -> None:
    """Beyond the cap it is suspended; once an owner has raised that it goes on."""

    async def turn() -> None:
        await spending_enforce()
        await reconcile.reconcile()

    await in_thread(spend, work.team, "5")
    await in_thread(cap, work.team, "5")
    await work.becomes(SandboxState.SUSPENDED, turn)
    work.says(StopCause.SPENDING_CAP, "spending cap", "resume")
    with pytest.raises(QuotaExceeded, match="an owner can raise"):
        await suspension.sandbox_wake(sandbox=work.sandbox, actor=work.team.member)
    await in_thread(cap, work.team, "50")
    await work.resumed()


async def test_deadline(work: Work) -> None:
    """One that was given a time is stopped when that is over, and has its disk."""
    over = timezone.now() - timedelta(seconds=1)
    await in_thread(Sandbox.objects.filter(pk=work.sandbox.pk).update, stop_at=over)
    await work.becomes(SandboxState.STOPPED, reconcile.expire)
    work.says(StopCause.DEADLINE, "time was up", "start")
    await in_thread(Sandbox.objects.filter(pk=work.sandbox.pk).update, stop_at=None)
    await in_thread(work.sandbox.refresh_from_db)
    await work.started()


@pytest.mark.parametrize("whose", ["the host", "its limit"])
async def test_the_kernel_ends_it_for_want_of_memory(work: Work, whose: str) -> None:
    """The host has none left, or QEMU wants more than it may have: each is told, and the disk is kept."""
    group = f"atoll-{work.process.tag}"
    if not any((place / group).exists() for place in (ROOT, ROOT / "memory")):
        pytest.skip("no control groups may be made here")
    if whose == "its limit":
        record = work.process.data / "machines" / MACHINE / "machine.json"
        group = f"{group}/{json.loads(record.read_text())['body']}"
    with hardly_more_memory(group, 8 * 2**20):
        await start_command(
            work.process.client, MACHINE, "python3", "-c", "x = b'x' * 2**28; import time; time.sleep(60)"
        )
        await work.becomes(SandboxState.STOPPED, reconcile.reconcile)
    if whose == "the host":
        work.says(StopCause.HOST_OUT_OF_MEMORY, "the host ran out of memory", "start")
    else:
        work.says(StopCause.MEMORY_LIMIT, "its memory limit on the host", "start")
    await work.started()
