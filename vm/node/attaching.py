"""Volumes of running machines: plugged in and mounted, unmounted and unplugged.

A volume is a machine's from when its record says so, which is before anything is done: a node that is killed in between
leaves it to that machine, and asking again finishes or undoes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from vm.api import VolumeId, VolumeMount
from vm.errors import MachineFailed, MachineGone, StreamReset, VmError, VolumeBusy
from vm.guest.channel import Channel
from vm.libvirt import disks
from vm.libvirt.connection import Connection
from vm.node.asking import answer_of, printable
from vm.node.keeper import Machine
from vm.node.lanes import Lanes
from vm.node.records import Attached, Names, Record, serial_of
from vm.node.volumes import Volumes
from vm.storage.layout import Layout

log = logging.getLogger("atoll.node")

_PLUGGING = 30.0
_MOUNTING = 30.0


class Attaching:
    """Does it for machines that run; whoever calls holds the machine's `busy`, or is the one who starts it."""

    def __init__(
        self,
        layout: Layout,
        names: Names,
        lanes: Lanes,
        conn: Connection,
        volumes: Volumes,
        save: Callable[[Record], Awaitable[None]],
    ) -> None:
        self._layout = layout
        self._names = names
        self._lanes = lanes
        self._conn = conn
        self._volumes = volumes
        self._save = save

    async def attach_wanted(self, record: Record, channel: Channel) -> None:
        """Attach what a machine that has just booted is to have. Whatever VmError keeps it from that."""
        record.attached = []
        for mount in record.spec.volumes:
            await self._bring(record, channel, mount)

    async def attach(self, machine: Machine, mount: VolumeMount) -> None:
        """See vm.api.Node.volume_attach."""
        record = machine.record
        if machine.channel is None:
            raise MachineGone(f"machine {record.machine} is {record.state}")
        self._volumes.require_free(mount, machine=record.machine)
        if mount.volume == record.spec.root and not mount.read_only:
            raise VolumeBusy("it is the machine's root already")
        if any(one.copy and one.volume == mount.volume for one in record.attached):
            raise VolumeBusy("the machine has a copy of it since it was forked, which goes when it starts anew")
        wanted = next((one for one in record.spec.volumes if one.volume == mount.volume), None)
        if wanted is not None and wanted != mount:
            raise VolumeBusy(f"the machine has it already, at {wanted.path}")
        if wanted is None:
            # From here on it is this machine's
            record.spec = replace(record.spec, volumes=(*record.spec.volumes, mount))
            await self._save(record)
        try:
            await self._bring(record, machine.channel, mount)
        except VmError:
            if wanted is None:
                await self._take(record, None, mount.volume)
            raise

    async def detach(self, machine: Machine, volume: VolumeId) -> None:
        """See vm.api.Node.volume_detach."""
        await self._take(machine.record, machine.channel, volume)

    async def grow_root(self, channel: Channel) -> None:
        """Let a machine that booted from a volume have all of it; where that fails, it has what it had."""
        try:
            await self._ask(channel, "volume.grow", {"serial": ""})
        except VmError as error:
            log.warning("a root file system could not grow: %s", error)

    async def grow(self, channel: Channel, serial: str) -> None:
        """Let the guest's file system have the whole of its disk, which became larger. MachineFailed."""
        await self._ask(channel, "volume.grow", {"serial": serial})

    async def look(self, record: Record) -> None:
        """Of a machine that was found running: what is not plugged in is not attached. Any VmError."""
        name = self._names.of(record.body)
        there = await self._lanes.run(name, lambda: disks.disk_serials(self._conn, name), deadline=_PLUGGING)
        record.attached = [one for one in record.attached if serial_of(one.volume) in there]

    # -- inside

    async def _bring(self, record: Record, channel: Channel, mount: VolumeMount) -> None:
        if not any(one.volume == mount.volume for one in record.attached):
            layers = await self._volumes.open(mount)
            record.attached = [*record.attached, Attached(mount.volume, mount.path, mount.read_only, layers)]
            await self._save(record)
        attached = next(one for one in record.attached if one.volume == mount.volume)
        name, disk, serial = (
            self._names.of(record.body),
            self._layout.disk(attached.layers[0]),
            serial_of(mount.volume),
        )
        await self._lanes.run(
            name, lambda: disks.disk_attach(self._conn, name, disk=disk, serial=serial), deadline=_PLUGGING
        )
        params = {"serial": serial, "path": mount.path, "readOnly": mount.read_only}
        await self._ask(channel, "volume.mount", params)

    async def _take(self, record: Record, channel: Channel | None, volume: VolumeId) -> None:
        """Unmount it, where there is a channel, and unplug it. VolumeBusy while the guest uses it."""
        name, serial = self._names.of(record.body), serial_of(volume)
        if channel is not None:
            await self._ask(channel, "volume.unmount", {"serial": serial})
        await self._lanes.run(name, lambda: disks.disk_detach(self._conn, name, serial=serial), deadline=_PLUGGING)
        record.attached = [one for one in record.attached if one.volume != volume]
        record.spec = replace(record.spec, volumes=[one for one in record.spec.volumes if one.volume != volume])
        await self._save(record)

    async def _ask(self, channel: Channel, method: str, params: Mapping[str, Any]) -> None:
        try:
            async with asyncio.timeout(_MOUNTING):
                answer = await answer_of(channel, method, params)
        except (TimeoutError, StreamReset) as error:
            raise MachineFailed("its agent did not answer while a volume came or went") from error
        if isinstance(problem := answer.get("error"), dict):
            words = printable(problem.get("message", ""))
            raise VolumeBusy(words) if problem.get("code") == "EBUSY" else MachineFailed(words)
        if "ok" not in answer:
            raise MachineFailed(f"its agent knows nothing of volumes: {printable(answer, 200)}")
