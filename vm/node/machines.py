"""The verbs of the node's API for machines: each is done by the part that knows how."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from vm.api import (
    EgressPolicy,
    MachineId,
    MachineInfo,
    MachineSpec,
    MachineState,
    PassageBatch,
    Secret,
    VolumeId,
    VolumeInfo,
    VolumeMount,
)
from vm.errors import HypervisorError, MachineExists, MachineGone, VmError, VolumeBusy
from vm.guest.channel import GuestStream
from vm.host.memory import OutOfMemoryWatch
from vm.libvirt.connection import Connection
from vm.node.attaching import Attaching
from vm.node.booting import Booting
from vm.node.config import NodeConfig
from vm.node.division import Division
from vm.node.doors import Doors
from vm.node.ending import Ending
from vm.node.forking import Forking
from vm.node.keeper import Keeper, Machine
from vm.node.lanes import Lanes
from vm.node.layers import Layers
from vm.node.merging import Merging
from vm.node.place import Place
from vm.node.pool import Pool
from vm.node.records import Names, Record
from vm.node.remembering import Remembering
from vm.node.room import Room
from vm.node.roster import Roster
from vm.node.sanity import require_sane_policy, require_sane_spec
from vm.node.scribe import Scribe
from vm.node.snapshots import Snapshots
from vm.node.start import Starter
from vm.node.suspending import Suspending
from vm.node.templates import Templates, size_of
from vm.node.volumes import Volume, Volumes
from vm.storage.images import image_find
from vm.storage.layout import LayerId, Layout, private_directory

_PASSAGES = 2000


class Machines:
    """What the verbs of the node's API do. All of it runs in one event loop; blocking work goes through the lanes."""

    def __init__(
        self, config: NodeConfig, layout: Layout, names: Names, lanes: Lanes, conn: Connection, accelerator: str
    ) -> None:
        self.config = config
        self.layout = layout
        self.names = names
        self.lanes = lanes
        self.conn = conn
        self.scratch = config.scratch / names.prefix.rstrip("-")
        private_directory(self.scratch)
        place = Place(config, layout, names, lanes, conn, self.scratch)
        self.doors = Doors(config, layout)
        self._scribe = Scribe(layout)
        self.roster = roster = Roster(layout, self.doors, self._scribe, self._shared_layers)
        self.known = roster.known
        self.starter = Starter(config, layout, names, lanes, conn, accelerator, self.scratch, self.doors, self._scribe)
        self.templates = Templates(config, layout, names, lanes, conn, self.starter, accelerator)
        self.keeper = Keeper(config, names, lanes, conn, self.starter, roster.observed, roster.measure_disk)
        self.pool = Pool(config, layout, names, lanes, conn, self.starter, self.templates, self._idle)
        self.room = Room(config, layout, self.scratch, roster, self.pool)
        self.layers = Layers(config, layout, names, lanes, conn, self.starter.owner)
        self.volumes = Volumes(
            config, layout, lanes, self.layers, self.starter.owner, self._users_of, self.needed_layers
        )
        self.volumes.removed = self.templates.forget_root
        self.templates.root, self.templates.knows = self.volumes.system_of, self.volumes.may_know
        self.attaching = Attaching(layout, names, lanes, conn, self.volumes, roster.save_first)
        self.snapshots = Snapshots(
            layout, names, lanes, conn, self.layers, self.volumes, self._user_of, roster.save_first
        )
        merging = Merging(roster, self.layers, self.snapshots, self.needed_layers)
        self.snapshots.longer = merging.if_long
        self.snapshots.current = lambda machine: self.known.get(machine.record.machine) is machine
        self.out_of_memory = OutOfMemoryWatch()
        self.booting = Booting(
            place,
            roster,
            self.room,
            self.doors,
            self.starter,
            self.templates,
            self.keeper,
            self.pool,
            self.volumes,
            self.attaching,
            self.out_of_memory,
            merging.if_long,
        )
        self.ending = Ending(
            place, roster, self.doors, self.starter, self.keeper, self.pool, self.booting, self.out_of_memory
        )
        self.suspending = Suspending(place, roster, self.room, self.doors, self.starter, self.keeper, self.booting)
        self.remembering = Remembering(place, roster, self.room, self.layers, self.volumes, self.templates, merging)
        division = Division(place, roster, self.layers, self.volumes)
        self.forking = Forking(place, roster, self.room, division, self.booting, merging)

    # -- verbs

    async def start(self, spec: MachineSpec, secrets: Sequence[Secret] = ()) -> MachineInfo:
        """See vm.api.Node.machine_start."""
        require_sane_spec(spec, secrets)
        self.roster.require_readable(spec.machine)
        await self._let_go(spec.machine)
        before = self.known.get(spec.machine)
        if before is not None and before.record.state is not MachineState.STOPPED:
            raise MachineExists(f"machine {spec.machine} is {before.record.state}")
        kept = before is not None and not before.record.fresh and bool(before.record.disks)
        own = kept and not self.volumes.writable(spec.root)
        root = self.volumes.require_root(spec.root, machine=spec.machine) if spec.root and not own else None
        for mount in spec.volumes:
            self.volumes.require_free(mount, machine=spec.machine)
            if mount.volume == spec.root:
                raise VolumeBusy("it is the machine's root already")
        # Its disk lies over the image it was made from, whatever is asked for now
        wanted = before.record.image if before and own else spec.image or self.config.image
        image = image_find(self.config.image_cache, root.image if root else wanted)
        if before is not None and own:
            # As large as it has become, with a root that was larger or has grown
            spec = replace(spec, disk_gib=max(spec.disk_gib, before.record.spec.disk_gib))
        elif root is not None:
            spec = replace(spec, disk_gib=max(spec.disk_gib, -(-root.capacity // 2**30)))
        record = self.roster.record(spec, image.hash, secrets)
        if before is not None:
            self.booting.new_body(record)
            record.cpu_before = before.record.cpu_seconds
            record.cpu_seconds = before.record.cpu_seconds
            if kept:
                record.disks, record.fresh = before.record.disks, False
        if root is not None and not root.frozen:
            record.fresh = False  # it is somebody's work from the beginning
        machine = self.known[spec.machine] = Machine(record)
        waiting = None
        try:
            self.booting.require_turn()
            if not kept and self._may_clone(record, root):
                # Before room is made: that takes clones away, and this one has its memory already
                self.pool.note(size_of(record))
                waiting = self.pool.take(size_of(record))
            await self.room.make(record)
            self.roster.require_wanted(machine)
            taken, waiting = waiting, None
            if taken is not None and await self.booting.take(machine, taken):
                return self.roster.info(machine)
            await self.roster.require_saved(record)
            self.roster.require_wanted(machine)
        except (VmError, OSError) as error:
            if waiting is not None:
                self.pool.put_back(waiting)
            self.roster.unknow(machine, before)
            if isinstance(error, OSError):
                raise HypervisorError(f"the machine could not be written down ({error.strerror})") from error
            raise
        self.booting.enqueue(machine)
        return self.roster.info(machine)

    def _may_clone(self, record: Record, root: Volume | None) -> bool:
        """Whether it may be one of the pool's; what goes on from somebody's memory never waits there."""
        if root is not None:
            template = self.templates.find(size_of(record))
            return self.config.clones and root.frozen and not (template is not None and template.live)
        # Templates are of the newest image only
        return self.config.clones and record.image == image_find(self.config.image_cache, self.config.image).hash

    def info(self, machine: MachineId) -> MachineInfo:
        """See vm.api.Node.machine_get."""
        return self.roster.info(self.roster.get(machine))

    def infos(self) -> Sequence[MachineInfo]:
        """See vm.api.Node.machine_list."""
        return [self.roster.info(machine) for machine in self.known.values()]

    async def policy(self, machine: MachineId, policy: EgressPolicy, secrets: Sequence[Secret] = ()) -> MachineInfo:
        """See vm.api.Node.machine_policy."""
        known = self.roster.get(machine)
        require_sane_policy(policy, secrets)
        known.record.spec = replace(known.record.spec, policy=policy)
        known.record.has_secrets = bool(secrets)
        self.roster.save(known.record)
        if known.record.state is not MachineState.STOPPED:  # it gets them when it is started
            self.doors.entrust(machine, secrets)
            await self.doors.change(known.record)
        return self.roster.info(known)

    async def passages(self, cursor: str, limit: int) -> PassageBatch:
        """See vm.api.Node.egress_passages."""
        if not 1 <= limit <= _PASSAGES:
            raise HypervisorError(f"between 1 and {_PASSAGES} connections may be asked for at a time")
        return await self.lanes.run("journal", lambda: self.doors.spool.read(cursor, limit), deadline=30)

    async def forget(self, machine: MachineId) -> None:
        """See vm.api.Node.machine_forget."""
        await self._let_go(machine)
        known = self.known.get(machine)
        if known is None:
            return
        if known.record.state is not MachineState.STOPPED:
            raise MachineExists(f"machine {machine} is {known.record.state}")
        self.roster.require_readable(machine)
        place = self.layout.machine(machine)
        del self.known[machine]
        self.doors.distrust(machine)
        await self.roster.written()  # or it would be there again
        name = self.names.of(known.record.body)

        def remove() -> None:
            # Without its record the directory is half-made, which the next start of a node would remove
            self.layout.record(machine).unlink(missing_ok=True)
            shutil.rmtree(place, ignore_errors=True)

        await self.lanes.run(name, remove, deadline=60)
        self.lanes.forget(name)
        await self.layers.sweep(self.needed_layers)

    def needed_layers(self) -> set[LayerId]:
        """Every layer that somebody needs now."""
        records = [machine.record for machine in self.known.values()]
        machines = {layer for record in records for layer in record.disks}
        machines |= {layer for record in records for one in record.attached for layer in one.layers}
        return machines | self.layers.being_made | self.pool.layers() | self._shared_layers()

    def _shared_layers(self) -> set[LayerId]:
        """Layers that count for no machine."""
        return self.templates.layers() | self.volumes.layers()

    def _users_of(self, volume: VolumeId) -> Sequence[MachineId]:
        """Machines that write to it, or will once they run."""
        alive = [one.record for one in self.known.values() if one.record.state is not MachineState.STOPPED]

        def writes(record: Record) -> bool:
            mounted = [one.volume for one in record.spec.volumes if not one.read_only]
            mounted += [one.volume for one in record.attached if not one.read_only]
            return volume in mounted or (volume == record.spec.root and self.volumes.writable(volume))

        return [record.machine for record in alive if writes(record)]

    def _user_of(self, volume: VolumeId) -> Machine | None:
        return next((self.known[machine] for machine in self._users_of(volume)), None)

    async def machine_snapshot(self, machine: MachineId, snapshot: VolumeId, *, memory: bool = False) -> VolumeInfo:
        """See vm.api.Node.machine_snapshot."""
        if memory:
            return await self.remembering.snapshot(machine, snapshot)
        return await self.snapshots.of_machine(self.roster.get(machine), snapshot)

    async def machine_restore(self, machine: MachineId, snapshot: VolumeId) -> None:
        """See vm.api.Node.machine_restore."""
        self.roster.require_readable(machine)
        await self.snapshots.put_back(self.roster.get(machine), snapshot)

    async def _let_go(self, machine: MachineId) -> None:
        """Return once nobody does anything with the disk of a machine that is STOPPED."""
        while (known := self.known.get(machine)) is not None and known.record.state is MachineState.STOPPED:
            if not known.busy.locked():
                return
            async with known.busy:
                pass

    async def volume_attach(self, machine: MachineId, mount: VolumeMount) -> None:
        """See vm.api.Node.volume_attach."""
        known = self.roster.get(machine)
        async with known.busy:
            self.roster.require_running(known)
            await self.attaching.attach(known, mount)

    async def volume_detach(self, machine: MachineId, volume: VolumeId) -> None:
        """See vm.api.Node.volume_detach."""
        known = self.known.get(machine)
        if known is None or known.record.state is MachineState.STOPPED:
            return
        async with known.busy:
            self.roster.require_running(known)
            await self.attaching.detach(known, volume)
        await self.layers.sweep(self.needed_layers)

    async def open_stream(self, machine: MachineId) -> GuestStream:
        """See vm.api.Node.stream_open."""
        known = self.roster.get(machine)
        if known.channel is None or known.ending is not None:
            raise MachineGone(f"machine {machine} is {known.record.state}")
        return await known.channel.open(timeout=5.0)

    # -- for settling and sweeping

    def bodies(self) -> set[str]:
        """The bodies that may have a domain, a namespace or a socket now."""
        live = {
            m.record.body
            for m in self.known.values()
            if m.record.state not in (MachineState.STOPPED, MachineState.SUSPENDED)
        }
        ending = {m.record.body for m in self.known.values() if m.ending is not None or m.busy.locked()}
        return live | ending | self.pool.bodies() | self.templates.bodies()

    def _idle(self) -> bool:
        return self.booting.idle()

    async def close(self) -> None:
        """Stop looking after the machines; those that run run on, those that boot begin anew with the next node."""
        self.booting.closing = True
        self.roster.close()
        endings = [machine.ending for machine in self.known.values() if machine.ending is not None]
        work = [machine.work for machine in self.known.values() if machine.work is not None]
        for task in work:
            task.cancel()
        if endings or work:
            await asyncio.wait([*endings, *work], timeout=15)
        with suppress(VmError):
            await self.pool.close()
        await self.starter.close()
        if self.starter.groups is not None:
            self.starter.groups.close()
        await self.doors.close()
        for disk in self.templates.layers():
            self.starter.spares.drop(disk)
        for machine in self.known.values():
            if machine.channel is not None:
                await machine.channel.close()
        self._scribe.close()
        with suppress(OSError):  # a start that was cut short may have left an image, which the next node sweeps
            self.scratch.rmdir()
