"""The ready pool: clones that were restored, made to answer, and paused, each waiting to become somebody's machine."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress

from vm.api import Identity, MachineSpec, MachineState, Origin
from vm.background import spawn
from vm.errors import HostFull, VmError
from vm.host.kvm import boot_id
from vm.libvirt import domains
from vm.libvirt.connection import Connection
from vm.node.config import NodeConfig
from vm.node.demand import Demand, Size, next_step, wanted
from vm.node.hostinfo import memory_available, memory_total
from vm.node.keeper import Machine
from vm.node.lanes import Lanes, TooSlow
from vm.node.records import Names, Record
from vm.node.start import Starter
from vm.node.templates import Templates, size_of, warm_size, warm_up
from vm.storage.layout import LayerId, Layout

log = logging.getLogger("atoll.node")

_LOOK = 0.1  # seconds between looks at what there should be
_CALM = 0.25  # seconds after a clone was made or taken: a first command is not to share processors with the next clone
_RETRY = 10.0  # seconds after a clone that could not be made
_CLONE_MIB = 256  # about what one that waits holds: it is given back before anybody's machine has to go
_WARM = ("true", "true", "true")  # fills QEMU's translations for what a first command needs
_SETTLE = 0.15  # seconds in which its spawner makes the next child in advance


class Pool:
    """Keeps templates and clones as demand asks for. `idle` says whether nobody waits for a boot."""

    def __init__(
        self,
        config: NodeConfig,
        layout: Layout,
        names: Names,
        lanes: Lanes,
        conn: Connection,
        starter: Starter,
        templates: Templates,
        idle: Callable[[], bool],
    ) -> None:
        self._config = config
        self._layout = layout
        self._names = names
        self._lanes = lanes
        self._conn = conn
        self._starter = starter
        self._templates = templates
        self._idle = idle
        self._demand = Demand()
        self._waiting: list[Machine] = []
        self._lent: list[Machine] = []  # taken, and not yet their machines' own
        self._filling: Machine | None = None
        self._asked_for: set[Size] = set()
        self._nudge = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._retry_at = 0.0
        self._calm_until = 0.0

    # -- what the machines ask

    def open(self) -> None:
        """Begin to work."""
        self._task = spawn(self._work(), name="pool")

    async def close(self) -> None:
        """Stop working and give everything back."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await asyncio.gather(*(self.drop(machine) for machine in list(self._waiting)))

    def note(self, size: Size) -> None:
        """A machine of that size was asked for."""
        self._demand.note(size, time.monotonic())
        if self._templates.find(size) is None:
            self._asked_for.add(size)
        self._nudge.set()

    def take(self, size: Size) -> Machine | None:
        """The newest clone that waits, which is the caller's from now on; it is paused, and has no identity."""
        for machine in reversed(self._waiting):
            if size_of(machine.record) == size and machine.channel is not None and machine.channel.up:
                self._waiting.remove(machine)
                self._lent.append(machine)
                self.rest()
                self._nudge.set()
                return machine
        return None

    def put_back(self, machine: Machine) -> None:
        """A clone that was taken is not needed after all: nothing was done with it."""
        self._lent.remove(machine)
        self._waiting.append(machine)

    def given(self, machine: Machine) -> None:
        """A clone that was taken is known as somebody's machine from here on."""
        self._lent.remove(machine)

    def rest(self) -> None:
        """Somebody has just got a machine, or is about to: leave the processors to its first command."""
        self._calm_until = time.monotonic() + _CALM

    def gone(self, body: str) -> bool:
        """libvirt says that a domain has ended; whether it was a clone that waited."""
        for machine in self._waiting:
            if machine.record.body == body:
                log.warning("a clone in the pool has ended: %s", body)
                self._waiting.remove(machine)
                spawn(self.drop(machine), name=f"drop {body}")
                return True
        return False

    async def give_back(self, mib: int) -> None:
        """Drop clones that together hold about that much memory: somebody needs it now."""
        while mib > 0 and self._waiting:
            machine = self._waiting[0]
            mib -= machine.record.memory_mib // 2
            await self.drop(machine)

    @property
    def committed_mib(self) -> int:
        """Memory of its clones, as their domains have it."""
        return sum(machine.record.memory_mib for machine in self._all())

    @property
    def ready(self) -> int:
        """How many wait and answer."""
        return sum(machine.channel is not None and machine.channel.up for machine in self._waiting)

    @property
    def wanted(self) -> int:
        """How many there should be."""
        return sum(self._granted().values())

    def bodies(self) -> set[str]:
        """The bodies of its clones."""
        return {machine.record.body for machine in [*self._all(), *self._lent]}

    def layers(self) -> set[LayerId]:
        """The layers of its clones."""
        return {layer for machine in [*self._all(), *self._lent] for layer in machine.record.disks}

    def _all(self) -> list[Machine]:
        return [*self._waiting, *([self._filling] if self._filling is not None else [])]

    # -- working

    def _granted(self) -> dict[Size, int]:
        budget = self._config.pool_memory_mib or memory_total() // 2**20 // 4
        return wanted(
            recent=self._demand.recent(time.monotonic()),
            warm=warm_size(self._config),
            floor=self._config.pool_floor,
            ceiling=self._config.pool_ceiling,
            budget_mib=budget,
        )

    async def _work(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK):
                    await self._nudge.wait()
            self._nudge.clear()
            try:
                while await self._one_step():
                    pass
            except (VmError, OSError, TimeoutError) as error:
                self._retry_at = time.monotonic() + _RETRY
                log.warning("the pool could not do its next step: %s", error)
            except Exception:
                self._retry_at = time.monotonic() + _RETRY
                log.exception("the pool failed")

    async def _one_step(self) -> bool:
        if self._waiting and memory_available() // 2**20 < self._config.kept_free_mib + _CLONE_MIB:
            log.warning("the host is short of memory: a clone of the pool gives its own back")
            await self.drop(self._waiting[0])
            return True
        if not self._config.clones or not self._idle():
            return False
        for machine in self._waiting:
            if machine.channel is None or not machine.channel.up:
                log.warning("a clone in the pool does not answer any more")
                await self.drop(machine)
                return True
        waiting: dict[Size, int] = {}
        for machine in self._waiting:
            size = size_of(machine.record)
            waiting[size] = waiting.get(size, 0) + 1
        warm = warm_size(self._config)
        to_bake = [size for size in ([warm] if warm else []) + sorted(self._asked_for, key=str) if size is not None]
        if time.monotonic() < self._calm_until:
            return False
        if warm is not None and (template := self._templates.find(warm)) is not None:
            await self._starter.spares.lay(template.key, disk=template.disk, size_gib=template.size.disk_gib)
        step = next_step(
            granted=self._granted(),
            waiting=waiting,
            baked=self._templates.sizes(),
            # One for which there is no room keeps nobody from the clones of others
            to_bake=[size for size in to_bake if self._templates.may_bake(size) and self._room(size)],
        )
        if step is None:
            return False
        if step.what == "drop":
            await self.drop(next(machine for machine in self._waiting if size_of(machine.record) == step.size))
        elif step.what == "bake":
            self._asked_for.discard(step.size)
            await self._templates.bake(step.size)
        elif time.monotonic() < self._retry_at or not self._room(step.size):
            return False
        else:
            await self._fill(step.size)
        return True

    def _room(self, size: Size) -> bool:
        # Else the next look would give it back
        spare = memory_available() // 2**20 - self._config.kept_free_mib - _CLONE_MIB
        return spare > size.memory_mib

    async def _fill(self, size: Size) -> None:
        template = self._templates.find(size)
        if template is None:
            return
        record = Record(
            spec=MachineSpec("", size.memory_mib, size.vcpus, size.disk_gib, Identity("sandbox"), root=size.root),
            image=template.image,
            state=MachineState.STARTING,
            since=time.time(),
            boot_id=boot_id(),
            body=secrets.token_hex(16),
            disks=[secrets.token_hex(16), *template.layers],
            origin=Origin.CLONE,
            template=template.key,
        )
        machine = self._filling = Machine(record)
        try:
            machine.channel = await self._starter.start(record, machine.link_changed)
            # What was translated once, its identity included, is quick when somebody waits for it
            await warm_up(machine.channel, _WARM)
            await asyncio.sleep(_SETTLE)
            name = self._names.of(record.body)
            await self._lanes.run(name, lambda: domains.domain_pause(self._conn, name), deadline=10)
            state = await self._lanes.run(name, lambda: domains.domain_state(self._conn, name), deadline=10)
            record.cpu_seconds = state.cpu_seconds if state is not None else 0.0
        except (HostFull, TooSlow, TimeoutError):
            # A host that is busy with others' machines: that says nothing of the template
            await self.drop(machine)
            raise
        except (VmError, OSError):
            self._templates.failed(template.key, list(record.stages)[-1] if record.stages else "")
            await self.drop(machine)
            raise
        except BaseException:
            await self.drop(machine)
            raise
        finally:
            self._filling = None
        self._templates.worked(template.key)
        self._waiting.append(machine)
        self.rest()  # whoever has waited for this one comes now

    async def drop(self, machine: Machine) -> None:
        """Give a clone back, with its disk."""
        for place in (self._waiting, self._lent):
            if machine in place:
                place.remove(machine)
        if machine.channel is not None:
            await machine.channel.close()
        try:
            await self._starter.release(machine.record)
        except (VmError, OSError) as error:
            log.warning("a clone of the pool could not be removed yet: %s", error)
        self._layout.disk(machine.record.disks[0]).unlink(missing_ok=True)
