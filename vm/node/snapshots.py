"""Snapshots: what a disk held at one moment becomes read-only, and whoever writes to it goes on in a fresh layer.

What goes on is written down before it does: an empty layer over a disk shows what the disk shows, so that a record may
name it too early, but never too late. A snapshot's own record comes last, and until then there is none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import replace

from vm.api import MachineState, VolumeId, VolumeInfo
from vm.errors import MachineFailed, MachineGone, StreamReset, VmError, VolumeBusy
from vm.guest.channel import Channel
from vm.libvirt import disks
from vm.libvirt.connection import Connection
from vm.node.asking import answer_of, ask, printable
from vm.node.keeper import Machine
from vm.node.lanes import Lanes
from vm.node.layers import Layers
from vm.node.records import Names, Record, serial_of
from vm.node.volumes import Volume, Volumes
from vm.storage.layout import LayerId, Layout

log = logging.getLogger("atoll.node")

_WORKING = 60.0
_FREEZING = 20.0
_LONGEST = 60
"""Layers of a volume above which QEMU would take long to open it."""
_RUNNING = (MachineState.READY, MachineState.LOST)
_RESTING = (MachineState.SUSPENDED, MachineState.STOPPED)


class Snapshots:
    """Takes them; `user` says which machine writes to a volume, `save` writes a machine's record down."""

    def __init__(
        self,
        layout: Layout,
        names: Names,
        lanes: Lanes,
        conn: Connection,
        layers: Layers,
        volumes: Volumes,
        user: Callable[[VolumeId], Machine | None],
        save: Callable[[Record], Awaitable[None]],
    ) -> None:
        self._layout = layout
        self._names = names
        self._lanes = lanes
        self._conn = conn
        self._layers = layers
        self._volumes = volumes
        self._user = user
        self._save = save
        self.longer: Callable[[Machine], None] = lambda machine: None
        self.current: Callable[[Machine], bool] = lambda machine: True

    async def snapshot(self, volume: VolumeId, snapshot: VolumeId) -> VolumeInfo:
        """See vm.api.Node.volume_snapshot."""
        self._volumes.require_id(snapshot)
        async with self._volumes.turn(volume):
            if self._volumes.knows(snapshot):
                return await self._volumes.info(snapshot)
            source = self._volumes.get(volume)
            if source.frozen:
                raise VolumeBusy("it is a snapshot itself")
            if len(source.layers) >= _LONGEST:
                # They are merged when no machine has it
                raise VolumeBusy(f"{_LONGEST} snapshots were taken while a machine had it: let it go once")
            machine = self._user(volume)
            if machine is None:
                await self._at_rest(source, snapshot)
            else:
                # Not waited for: whoever holds it may be waiting for the volume
                if machine.busy.locked():
                    raise VolumeBusy("something else is being done with its machine: try again")
                async with machine.busy:
                    if machine.record.state is MachineState.SUSPENDED and machine.record.spec.root == volume:
                        # What it resumes from is told another disk then, which shows the same
                        await self._at_rest(source, snapshot, machine.record)
                    else:
                        await self._live(source, snapshot, machine)
        return await self._volumes.info(snapshot)

    async def of_machine(self, machine: Machine, snapshot: VolumeId) -> VolumeInfo:
        """See vm.api.Node.machine_snapshot."""
        record = machine.record
        if self._volumes.writable(record.spec.root):
            return await self.snapshot(record.spec.root, snapshot)
        self._volumes.require_id(snapshot)
        if not self._volumes.knows(snapshot):
            async with machine.held():
                # As it is now: it may have been started anew, or ended, while this waited
                resting = record.state in _RESTING and bool(record.disks) and not record.fresh
                running = record.state in _RUNNING and machine.channel is not None
                if not (resting or running) or machine.ending is not None or not self.current(machine):
                    raise MachineGone(f"machine {record.machine} is {record.state}")
                if len(record.disks) >= _LONGEST:
                    raise VolumeBusy(f"{_LONGEST} snapshots were taken while it did not run: start it once")
                await self._of_own_disk(machine, machine.channel if running else None, snapshot)
        return await self._volumes.info(snapshot)

    async def put_back(self, machine: Machine, snapshot: VolumeId) -> None:
        """See vm.api.Node.machine_restore."""
        record = machine.record
        async with machine.held():
            if record.state is not MachineState.STOPPED or not self.current(machine):
                raise VolumeBusy(f"machine {record.machine} is {record.state}: it has to be stopped for that")
            source = self._volumes.require_root(snapshot, machine=record.machine)
            if not source.frozen:
                raise VolumeBusy(f"volume {snapshot} is no snapshot: it may change at any time")
            root = record.spec.root if self._volumes.writable(record.spec.root) else ""
            # Neither goes meanwhile, and nobody takes the volume
            async with self._volumes.turn(snapshot), self._volumes.turn(root) if root else nullcontext():
                if root and (user := self._user(root)) is not None:
                    raise VolumeBusy(f"machine {user.record.machine} uses the volume that it boots from")
                await self._volumes.require_whole(source)
                with self._layers.fresh() as fresh:
                    await self._put_back(record, root, source, fresh)
        await self._volumes.sweep()

    async def _put_back(self, record: Record, root: VolumeId, source: Volume, fresh: LayerId) -> None:
        layers = [fresh, *source.layers]
        if root:
            volume = self._volumes.get(root)
            # A disk that grew since stays as large as it is
            await self._volumes.put_over(replace(source, capacity=max(source.capacity, volume.capacity)), fresh)
            volume.layers, volume.image = layers, source.image
            await self._volumes.keep(volume)
        else:
            await self._volumes.put_over(source, fresh)
            record.disks, record.image, record.fresh = layers, source.image, False
            await self._save(record)

    async def _of_own_disk(self, machine: Machine, channel: Channel | None, snapshot: VolumeId) -> None:
        """`channel` of one that runs; one that rests has written all that it will."""
        record = machine.record
        before = list(record.disks)
        made = Volume(snapshot, record.spec.disk_gib * 2**30, before, record.image, frozen=True)
        with self._layers.fresh() as fresh:
            await self._volumes.put_over(made, fresh)
            record.disks = [fresh, *before]
            await self._save(record)
            if channel is not None:
                await self._go_on_in(record, channel, fresh, before)
        await self._volumes.keep(made)
        self._volumes.seal(made)
        if channel is not None:
            self.longer(machine)

    async def _go_on_in(self, record: Record, channel: Channel, fresh: LayerId, before: list[LayerId]) -> None:
        try:
            async with self._frozen(channel, [""]):
                await self._switch(record, "", fresh)
        except VmError:
            if not await self._layers.writes_to(record, "", fresh):
                record.disks = before
                await self._save(record)
            raise

    async def _at_rest(self, source: Volume, snapshot: VolumeId, record: Record | None = None) -> None:
        """Of a volume that nobody writes to now; `record`: of the suspended machine whose root it is."""
        before = list(source.layers)
        with self._layers.fresh() as fresh:
            await self._volumes.put_over(source, fresh)
            source.layers = [fresh, *before]
            if record is not None:
                await self._note(record, source.volume, source.layers)
            await self._volumes.keep(source)
        await self._keep(source, snapshot, before)

    async def _live(self, source: Volume, snapshot: VolumeId, machine: Machine) -> None:
        """Of a volume that a machine writes to: it stands still from its freeze to its thaw, some 50 ms."""
        record, channel, serial = self._place(source, machine)
        before = list(source.layers)
        with self._layers.fresh() as fresh:
            await self._volumes.put_over(source, fresh)
            source.layers = [fresh, *before]
            await self._note(record, source.volume, source.layers)
            await self._volumes.keep(source)
            try:
                async with self._frozen(channel, [serial]):
                    await self._switch(record, serial, fresh)
            except VmError:
                if not await self._layers.writes_to(record, serial, fresh):
                    source.layers = before
                    await self._note(record, source.volume, before)
                    await self._volumes.keep(source)
                raise
        await self._keep(source, snapshot, before)
        self.longer(machine)

    async def _keep(self, source: Volume, snapshot: VolumeId, layers: list[LayerId]) -> None:
        made = Volume(snapshot, source.capacity, layers, source.image, frozen=True)
        await self._volumes.keep(made)
        self._volumes.seal(made)

    def _place(self, source: Volume, machine: Machine) -> tuple[Record, Channel, str]:
        """A machine that runs and has the volume: its channel, and the serial of the disk. VolumeBusy."""
        record, channel = machine.record, machine.channel
        root = record.spec.root == source.volume
        if record.state in _RUNNING and channel is not None:
            if root:
                return record, channel, ""
            if any(one.volume == source.volume for one in record.attached):
                return record, channel, serial_of(source.volume)
        raise VolumeBusy(f"machine {record.machine}, which has it, is {record.state}")

    async def _note(self, record: Record, volume: VolumeId, layers: Sequence[LayerId]) -> None:
        if record.spec.root == volume:
            record.disks = list(layers)
        record.attached = [
            replace(one, layers=list(layers)) if one.volume == volume else one for one in record.attached
        ]
        await self._save(record)

    async def merged(self, record: Record) -> None:
        """The layers of a machine's root disk have become fewer, and so have those of the volume that it is."""
        if self._volumes.writable(record.spec.root):
            volume = self._volumes.get(record.spec.root)
            volume.layers = list(record.disks)
            await self._volumes.keep(volume)

    async def grow(self, volume: VolumeId, capacity: int) -> VolumeInfo:
        """See vm.api.Node.volume_grow."""
        async with self._volumes.turn(volume):
            source = self._volumes.get(volume)
            if source.frozen:
                raise VolumeBusy("it is a snapshot: it never changes")
            machine = self._user(volume)
            # A guest whose file system could not follow is asked again
            again = capacity == source.capacity and machine is not None and machine.record.state in _RUNNING
            if capacity > source.capacity or again:
                if machine is None:
                    await self._volumes.grow(source, capacity)
                else:
                    if machine.busy.locked():
                        raise VolumeBusy("something else is being done with its machine: try again")
                    async with machine.busy:
                        await self._grow_live(source, capacity, machine)
        return await self._volumes.info(volume)

    async def _grow_live(self, source: Volume, capacity: int, machine: Machine) -> None:
        record, channel, serial = self._place(source, machine)
        name = self._names.of(record.body)
        await self._lanes.run(
            name, lambda: disks.disk_resize(self._conn, name, serial=serial, size=capacity), deadline=_WORKING
        )
        source.capacity = capacity
        await self._volumes.keep(source)
        if not serial:
            record.spec = replace(record.spec, disk_gib=max(record.spec.disk_gib, -(-capacity // 2**30)))
            await self._save(record)
        async with asyncio.timeout(_FREEZING):
            answer = await answer_of(channel, "volume.grow", {"serial": serial})
        if "ok" not in answer:
            raise MachineFailed(f"its file system could not grow: {printable(answer, 300)}")

    async def _switch(self, record: Record, serial: str, fresh: LayerId) -> None:
        name, overlay = self._names.of(record.body), self._layout.disk(fresh)
        await self._lanes.run(
            name, lambda: disks.disk_snapshot(self._conn, name, serial=serial, overlay=overlay), deadline=_WORKING
        )

    @asynccontextmanager
    async def _frozen(self, channel: Channel, serials: list[str]) -> AsyncIterator[None]:
        """Have the guest write what is dirty, and nothing more for as long as this lasts.

        One that does not answer is not waited for: then the snapshot is what a crash would leave.
        """
        frozen = False
        try:
            async with asyncio.timeout(_FREEZING):
                await ask(channel, "volume.freeze", {"serials": serials}, patience=2)
            frozen = True
        except (TimeoutError, StreamReset, MachineFailed) as error:
            log.warning("a guest could not be frozen: %s", error)
        try:
            yield
        finally:
            if frozen:
                with suppress(VmError, TimeoutError):
                    async with asyncio.timeout(_FREEZING):
                        await ask(channel, "volume.thaw", patience=2)
