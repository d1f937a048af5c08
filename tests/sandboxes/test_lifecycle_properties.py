"""Whatever is done in whatever order, wherever a process dies: rows and machines agree again and nothing is lost."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from django.utils import timezone
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as some

from sandboxes import reconcile, runtime
from sandboxes.database import in_thread
from sandboxes.errors import DomainError
from sandboxes.models import HostData, Kind, Sandbox, SandboxState, TimelineEntry
from sandboxes.services import creation, lifecycle, spending, suspension
from tests import factories
from vm.api import MachineState, StopReason
from vm.errors import HostFull, HypervisorError, NodeUnreachable, VmError
from vm.fake import FakeNode

VERBS = ("machine_start", "machine_stop", "machine_suspend", "machine_resume", "machine_fork", "machine_forget")
_slugs = itertools.count()


class ProcessDied(asyncio.CancelledError):
    """Stands for kill -9: nothing of the service runs after it."""


class MortalNode:
    """The node, as seen by a process that dies before or after the next call that changes a machine."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node
        self.dies: str | None = None

    def __getattr__(self, name: str) -> Any:
        work = getattr(self._node, name)
        if name not in VERBS or self.dies is None:
            return work
        when, self.dies = self.dies, None

        async def call(*args: Any, **kwargs: Any) -> Any:
            if when == "before":
                raise ProcessDied
            await work(*args, **kwargs)
            raise ProcessDied

        return call


class World:
    """One organization, one node, and what a test keeps of them: the machines whose disks hold somebody's work."""

    def __init__(self, node: FakeNode, mortal: MortalNode, team: factories.Team) -> None:
        self.node, self.mortal, self.team = node, mortal, team
        self.precious: set[int] = set()

    async def rows(self) -> list[Sandbox]:
        organization = self.team.organization
        return await in_thread(lambda: list(Sandbox.objects.filter(organization=organization).order_by("pk")))

    async def create(self, kind: Kind) -> None:
        wanted = creation.Wanted(kind=kind, name="work")
        sandbox = await in_thread(creation.sandbox_create, wanted=wanted, actor=self.team.member)
        await lifecycle.sandbox_boot(sandbox=sandbox)

    async def start(self, sandbox: Sandbox) -> None:
        await in_thread(lifecycle.sandbox_start, sandbox=sandbox, actor=self.team.member)
        await lifecycle.sandbox_boot(sandbox=sandbox)

    async def fork(self, sandbox: Sandbox) -> None:
        await suspension.sandbox_fork(sandbox=sandbox, actor=self.team.member)
        await asyncio.sleep(0)

    async def suspend(self, sandbox: Sandbox) -> None:
        await suspension.sandbox_suspend(sandbox=sandbox, actor=self.team.member, beside=False)

    async def resume(self, sandbox: Sandbox) -> None:
        if sandbox.state != SandboxState.SUSPENDING:
            await suspension.sandbox_wake(sandbox=sandbox, actor=self.team.member, beside=False)

    async def stop(self, sandbox: Sandbox) -> None:
        await lifecycle.sandbox_stop(sandbox=sandbox, actor=self.team.member, beside=False)

    async def delete(self, sandbox: Sandbox) -> None:
        await lifecycle.sandbox_delete(sandbox=sandbox, actor=self.team.member)

    async def restore(self, sandbox: Sandbox) -> None:
        await in_thread(lifecycle.sandbox_restore, sandbox=sandbox, actor=self.team.member)

    async def crash(self, sandbox: Sandbox) -> None:
        with suppress(VmError):
            if (await self.node.machine_get(sandbox.machine)).state is MachineState.READY:
                self.node.crash(sandbox.machine)

    async def reboot(self, _sandbox: Sandbox) -> None:
        """The host boots: whatever ran has ended, what is suspended lies on its disk."""
        with suppress(VmError):  # the node is down already
            for info in await self.node.machine_list():
                if info.state in (MachineState.READY, MachineState.LOST):
                    self.node.crash(info.machine, StopReason.HOST_RESTARTED)

    async def be_late(self, sandbox: Sandbox) -> None:
        """Its deadline passes."""
        await self._set(sandbox, stop_at=timezone.now() - timedelta(seconds=1))
        await reconcile.expire()

    async def leave_alone(self, sandbox: Sandbox) -> None:
        """Nobody uses it for longer than it may be idle."""
        await self._set(sandbox, state_since=timezone.now() - timedelta(days=1), active_at=None)
        await reconcile.reconcile()

    async def overspend(self, _sandbox: Sandbox) -> None:
        """The organization comes to its cap, which is lifted after what runs was halted."""
        organizations = type(self.team.organization).objects.filter(pk=self.team.organization.pk)
        await in_thread(organizations.update, spending_cap=0)
        try:
            await spending.spending_enforce()
        finally:
            await in_thread(organizations.update, spending_cap=None)

    async def _set(self, sandbox: Sandbox, **values: Any) -> None:
        await in_thread(Sandbox.objects.filter(pk=sandbox.pk).update, **values)

    async def work(self) -> None:
        """Whatever runs writes something to its disk."""
        known = {info.machine: info for info in await self.node.machine_list()}
        for row in await self.rows():
            info = known.get(row.machine)
            if row.kind == Kind.WORKSPACE and info is not None and info.state is MachineState.READY:
                self.node.disk(row.machine).mkdir(parents=True, exist_ok=True)
                (self.node.disk(row.machine) / "work").touch()
                self.precious.add(row.pk)

    async def agree(self) -> None:
        """What must be true once nobody fails any more and the reconciler has had its turns."""
        machines = {info.machine: info.state for info in await self.node.machine_list()}
        for row in await self.rows():
            state, machine = row.state, machines.pop(row.machine, None)
            match state:
                case SandboxState.RUNNING:
                    assert machine is MachineState.READY, row
                case SandboxState.SUSPENDED:
                    assert machine is MachineState.SUSPENDED, row
                case SandboxState.STOPPED | SandboxState.DELETED:
                    assert machine in (None, MachineState.STOPPED), (state, machine)
                    assert row.machine_removed == lifecycle.is_waste(row), (state, row.kind, row.machine_removed)
                case _:
                    raise AssertionError(f"left behind {state}")
            if state in (SandboxState.STOPPED, SandboxState.SUSPENDED):
                assert row.stop_cause, row
                assert row.stopped_by, row
                assert row.stopped_at, row
            if row.pk in self.precious:
                assert (self.node.disk(row.machine) / "work").exists(), f"{state} {row.name} lost its disk"
            last = await in_thread(TimelineEntry.objects.filter(sandbox=row).order_by("-id").first)
            assert last is not None, row
            assert last.state == state, (last.state, state)
        assert machines == {}, "machines that no row names"


SERVICES: dict[str, Callable[[World, Sandbox], Awaitable[None]]] = {
    "start": World.start,
    "fork": World.fork,
    "suspend": World.suspend,
    "resume": World.resume,
    "stop": World.stop,
    "delete": World.delete,
    "restore": World.restore,
    "crash": World.crash,
    "reboot": World.reboot,
    "be late": World.be_late,
    "leave alone": World.leave_alone,
    "overspend": World.overspend,
}
FAULTS = ("before", "after", "full", "broken", "silent", "down")
OFTEN = ["create", "reconcile", "suspend", "suspend", "resume", "resume", "fork"]
step = some.tuples(some.sampled_from(sorted(SERVICES) + OFTEN), some.sampled_from([0, 0, 0, 1, 2, 3]))
fault = some.sampled_from([None] * 6 + ["before", "after", "after"] + list(FAULTS))
alone = some.lists(some.tuples(fault, step, some.none()), min_size=8, max_size=14)
beside = some.sampled_from([None, *sorted(SERVICES), "suspend", "resume", "reconcile"])
at_once = some.lists(some.tuples(fault, step, beside), min_size=6, max_size=10)


def inject(world: World, fault: str | None) -> None:
    match fault:
        case "before" | "after":
            world.mortal.dies = fault
        case "full" | "broken" | "silent":
            kind = {"full": HostFull, "broken": HypervisorError, "silent": NodeUnreachable}[fault]
            for verb in VERBS:
                world.node.fail_next(verb, kind(fault))
        case "down":
            world.node.go_down(NodeUnreachable("down"))


def heal(world: World) -> None:
    world.mortal.dies = None
    world.node.go_down(None)
    world.node._failures.clear()


async def do(world: World, name: str, argument: int) -> None:
    """One operation, on what its process reads of the row."""
    rows = await world.rows()
    with suppress(DomainError, ProcessDied):
        if name == "create":
            await world.create(Kind.SANDBOX if argument == 3 else Kind.WORKSPACE)
        elif name == "reconcile":
            await reconcile.reconcile()
        elif rows:
            await SERVICES[name](world, rows[argument % len(rows)])


async def play(world: World, script: Any) -> None:
    await world.create(Kind.WORKSPACE)
    await world.work()
    for fault, (name, argument), other in script:
        inject(world, fault)
        async with asyncio.TaskGroup() as both:
            for one in (name, other):
                if one is not None:
                    both.create_task(do(world, one, argument))
        heal(world)
        await world.work()
    for _ in range(4):
        await reconcile.reconcile()
    await world.agree()
    for row in await world.rows():
        # Nothing that runs, is suspended or was deleted today is beyond being stopped, deleted and purged
        if row.state != SandboxState.DELETED:
            await world.delete(row)
    world.precious.clear()
    await in_thread(
        lambda: Sandbox.objects.filter(organization=world.team.organization).update(
            deleted_at=timezone.now() - timedelta(days=2)
        )
    )
    for _ in range(3):  # what becomes nobody's is stopped in one turn and forgotten in the next
        await reconcile.reconcile()
    assert await world.node.machine_list() == []


thorough = settings(
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],  # explaining a failure takes minutes here
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@settings(thorough, max_examples=30)
@given(script=alone)
def test_any_life_ends_well(script: Any, quiet_database: None, monkeypatch: Any, settings: Any) -> None:
    """Rows and machines agree, no machine is without a row, no workspace lost its disk, every end is explained."""
    live(script, monkeypatch, settings)


@settings(thorough, max_examples=12)
@given(script=at_once)
def test_any_two_at_once_end_well(script: Any, quiet_database: None, monkeypatch: Any, settings: Any) -> None:
    """Nor does it matter that somebody else does something to the same sandbox at the same moment."""
    live(script, monkeypatch, settings)


def live(script: Any, monkeypatch: Any, settings: Any) -> None:
    """Play a script on a node of its own."""
    monkeypatch.setattr(reconcile, "PATIENCE", -1.0)
    monkeypatch.setattr(reconcile, "AGAIN", -1.0)
    settings.ATOLL = {**settings.ATOLL, "stray_hours": 0}
    node = FakeNode()
    mortal = MortalNode(node)
    runtime.use(lambda: mortal)
    try:
        team = factories.team(f"life-{next(_slugs)}")
        type(team.organization).objects.update(quota_concurrent=100)
        asyncio.run(play(World(node, mortal, team), script))
    finally:
        Sandbox.objects.all().delete()
        HostData.objects.all().delete()  # the next node is another one
        runtime.use(None)
        node.close()
