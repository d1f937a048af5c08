"""Takes what a machine is made of, step by step, and gives it back: disk, namespace, domain, tap, channel, identity.

Each step finds what an earlier, killed attempt left, and `release` gives back all of it from any point, so that a node
killed at any line leaves nothing that the next one cannot settle.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import pwd
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from vm.api import Origin
from vm.background import spawn
from vm.errors import HostFull, HypervisorError, MachineFailed, StreamReset, VmError
from vm.guest.channel import Channel
from vm.host.authority import authority_hash
from vm.host.cgroups import Bounds, ControlGroups
from vm.host.run import CommandFailed
from vm.image.hashes import host_certificates
from vm.libvirt import domains, save_image, xml_build
from vm.libvirt.connection import Connection
from vm.libvirt.guest_memory import guest_memory
from vm.net import nftables
from vm.net.namespace import namespace_create, namespace_remove, tap_move, tap_remove
from vm.net.sockets import make_here
from vm.node.asking import ask
from vm.node.config import NodeConfig
from vm.node.doors import Doors
from vm.node.lanes import SAVING, Lanes, TooSlow
from vm.node.process import qemu_end, turn_after_others
from vm.node.randomness import renew
from vm.node.records import Names, Record
from vm.node.scribe import Scribe
from vm.node.spares import Spares
from vm.node.stages import side_by_side, timed, together
from vm.storage.images import image_find
from vm.storage.layout import BodyId, Layout, private_directory
from vm.storage.qcow2 import overlay_create, sync

log = logging.getLogger("atoll.node")

# The same in every machine, each in a namespace of its own: a clone of one must fit where another was.
MAC = "52:54:00:a7:01:01"
_TOLD_LATE = 10.0  # seconds after which libvirt tells nothing more of a domain's end
_CLOSING = 1.0  # seconds that a QEMU may take to end by itself; libvirt then kills it
_QUICK = 30.0  # seconds that a blocking step may take before it has failed


class Starter:
    """Starts machines one step at a time; knows nothing of queues and states."""

    def __init__(
        self,
        config: NodeConfig,
        layout: Layout,
        names: Names,
        lanes: Lanes,
        conn: Connection,
        accelerator: str,
        scratch: Path,
        doors: Doors,
        scribe: Scribe,
    ) -> None:
        self._config = config
        self._layout = layout
        self._names = names
        self._lanes = lanes
        self._conn = conn
        self._accelerator = accelerator
        self._scratch = scratch
        self._doors = doors
        self._scribe = scribe
        self._unasked: bool | None = None
        self.given_up: set[BodyId] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        # systemd's host: there the groups are libvirt's to make
        self._libvirt_bounds = bool(config.libvirt_uri) or Path("/run/systemd/system").exists()
        self.groups = None if self._libvirt_bounds else ControlGroups(names.prefix.rstrip("-"))
        user = pwd.getpwnam(config.machine_user)
        self.owner = (user.pw_uid, user.pw_gid)
        self.spares = Spares(layout, lanes, scratch, self.owner)

    async def start(self, record: Record, changed: Callable[[bool, str], None]) -> Channel:
        """Bring the machine up to an agent with its identity, by `record.origin`; on failure only its disk is left.

        `changed` is told when the channel's link comes and goes. Raises whatever VmError stopped it.
        """
        async with AsyncExitStack() as undo:
            record.stages.clear()
            record.tap = await self._lanes.run("names", self._names.next_tap, deadline=_QUICK)
            await self._scribe.write(record)
            undo.push_async_callback(self._undo, record)
            image = self._layout.memory(record.machine) if record.origin is Origin.RESUME else self._image(record)
            copying = [self._stage(record, "image", self._copy)] if record.origin is Origin.CLONE else []
            with side_by_side(record, "image", "disk"):
                await together(self._stage(record, "disk", self._disk), *copying)
            try:
                await self._bring(
                    record, self._create if record.origin is Origin.COLD else partial(self._restore, image)
                )
            finally:
                if record.origin in (Origin.CLONE, Origin.FORK):
                    # Freeing a hundred megabytes takes longer than the next step may wait
                    spawn(self._gone(image), name=f"image of {record.body}")
            if record.machine:
                # Before its processor runs; what is nobody's yet has a door that is shut
                self._doors.open(record)
            with timed(record, "agent"):
                channel = self.channel(record.body, changed)
                undo.push_async_callback(channel.close)
                if record.origin is Origin.RESUME:
                    await self._go_on(record)
                else:
                    if record.origin is Origin.FORK:
                        await self._blocking(record, partial(self._renew_random, record))
                    await self._run(record)
                if record.origin is Origin.COLD:
                    await self._await_agent(channel)
                    await self._have_trusted(record, channel)
            try:
                await self.introduce(record, channel)
            except (VmError, TimeoutError):
                if not record.committed:
                    raise
                log.warning("machine %s was resumed, but its agent does not answer yet", record.machine)
            undo.pop_all()
            return channel

    async def _gone(self, image: Path) -> None:
        await self._lanes.run("memory", lambda: image.unlink(missing_ok=True), deadline=_QUICK)

    async def _run(self, record: Record) -> None:
        await self._blocking(record, lambda: domains.domain_resume(self._conn, self._names.of(record.body)))

    def _renew_random(self, record: Record) -> None:
        state = image_find(self._config.image_cache, record.image).random
        if state is None:
            raise HypervisorError("its image is of an earlier version, whose machines cannot be forked")
        with guest_memory(self._conn, self._names.of(record.body)) as memory:
            renew(memory, state)

    async def _go_on(self, record: Record) -> None:
        """Let its processor run again: from then on what was saved of its memory is of the past."""
        record.committed, asked = True, False
        try:
            await self._scribe.write(record)
            # Its name in the directory, too: after a loss of power this memory must not go on with a newer disk
            await self._blocking(record, lambda: sync([self._layout.machine(record.machine)]))
            asked = True
            await self._run_however_late(record)
        except BaseException as error:
            # Of one that was asked to run nobody knows better, unless the hypervisor said no
            if not asked or (isinstance(error, VmError) and not isinstance(error, TooSlow)):
                record.committed = False
                self._scribe.write(record)
            raise
        memory, past = self._layout.memory(record.machine), self._layout.past_memory(record.machine, record.body)
        with suppress(VmError, OSError):
            # Under another name first: when it is removed, the next suspend may have written one already
            await self._blocking(record, partial(os.rename, memory, past))
        spawn(self._gone(past), name=f"memory of {record.machine}")

    async def _run_however_late(self, record: Record) -> None:
        name = self._names.of(record.body)
        try:
            await self._run(record)
        except TooSlow:
            # It may be let run at any time from now on: what follows in its lane finds out
            state = await self._lanes.run(name, lambda: domains.domain_state(self._conn, name), deadline=SAVING)
            if state is None or not state.running:
                raise HypervisorError("the host did not let its processor run in time") from None

    def channel(self, body: BodyId, changed: Callable[[bool, str], None]) -> Channel:
        """The channel to a body that has a domain."""
        path = str(self._layout.agent(body))

        async def connect() -> socket.socket:
            fresh = socket.socket(socket.AF_UNIX)
            fresh.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(fresh, path)
            except BaseException:
                fresh.close()
                raise
            return fresh

        return Channel(connect, changed=changed)

    async def release(self, record: Record) -> None:
        """Give back all but the disk and a saved memory. Repeatable, also when only some of it was ever taken.

        Of a domain whose process has ended nothing is left but libvirt's knowledge of it, which goes a moment later.
        """
        self._doors.shut(record.body)
        name, ended = self._names.of(record.body), False
        try:
            ended = await self._blocking(record, lambda: qemu_end(self._layout, name, _CLOSING))
            if not ended:
                await self._blocking(record, lambda: domains.domain_destroy(self._conn, name))
        finally:
            await self._blocking(record, lambda: self._network_gone(record))
            self._layout.agent(record.body).unlink(missing_ok=True)
            if self.groups is not None:
                self.groups.release(record.body)
            leaving = spawn(self._leave(name, destroy=ended), name=f"leave {name}")
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    async def _leave(self, name: str, *, destroy: bool) -> None:
        # By name: the machine may have its next body by now
        try:
            if destroy:
                await self._lanes.run(name, lambda: domains.domain_destroy(self._conn, name), deadline=_QUICK)
        finally:
            # libvirt's last words are in it
            (self._layout.libvirt / "log" / "qemu" / f"{name}.log").unlink(missing_ok=True)
            self._lanes.forget(name)

    async def close(self) -> None:
        """Wait until libvirt has let go of what was released; if it hangs, the next node's finds dead processes."""
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=_CLOSING)

    async def _undo(self, record: Record) -> None:
        # The memory of one that goes on is in its domain only: whatever failed since, and whoever waits no more
        if not (record.origin is Origin.RESUME and record.committed):
            await self.give_up(record)

    async def give_up(self, record: Record) -> None:
        """Release what failed to start. Its domain's end is our own doing, and what libvirt tells of it is no news."""
        self.given_up.add(record.body)
        try:
            await self.release(record)
        finally:
            asyncio.get_running_loop().call_later(_TOLD_LATE, self.given_up.discard, record.body)

    def _network_gone(self, record: Record) -> None:
        namespace_remove(self._names.of(record.body))
        if record.tap:
            tap_remove(record.tap)

    # -- steps

    async def _bring(self, record: Record, make: Callable[[Record], None]) -> None:
        """Make the domain, and put its tap into its namespace and its process into its group.

        All of that is before its processor has run an instruction: the guest never sees a network it must not reach.
        """
        over = threading.Event()

        async def domain() -> None:
            try:
                # What is restored comes from the disk, which may be as slow as it was when that was saved
                await self._stage(record, "domain", make, SAVING if record.origin is Origin.RESUME else 60)
            finally:
                over.set()

        async def around() -> None:
            await self._stage(record, "network", self._network)
            if self._config.libvirt_uri:
                await asyncio.to_thread(over.wait)
            await self._stage(record, "tap", partial(self._enclose, over))

        with side_by_side(record, "domain", "network", "tap"):
            await together(domain(), around())

    def _network(self, record: Record) -> None:
        namespace_create(
            self._names.of(record.body), nftables.gated(), lambda: self._doors.made(record.body, make_here())
        )

    async def _stage(self, record: Record, name: str, work: Callable[[Record], None], deadline: float = 60) -> None:
        # What has nothing to do with libvirt goes on beside it
        lane = self._names.of(record.body) if name == "domain" else f"{record.body}/{name}"
        try:
            with timed(record, name):
                await self._lanes.run(lane, lambda: work(record), deadline=deadline)
        finally:
            if "/" in lane:
                self._lanes.forget(lane)

    def _disk(self, record: Record) -> None:
        disk = self._layout.disk(record.disks[0])
        if not disk.exists():
            if not record.fresh:
                # An empty one in its place would look like a machine that lost everything
                raise HypervisorError("its disk is not on this host any more")
            if record.origin is Origin.CLONE:
                with suppress(FileNotFoundError):
                    self._layout.spare(record.disks[1]).rename(disk)
                    return
            image = image_find(self._config.image_cache, record.image)
            below = record.disks[1:]
            overlay_create(
                disk,
                backing=self._layout.disk(below[0]) if below else image.root,
                backing_format="qcow2" if below else image.root_format,
                size_gib=record.spec.disk_gib,
                owner=self.owner,
            )

    def _create(self, record: Record) -> None:
        plan = self._plan(record)
        plan.agent_socket.unlink(missing_ok=True)
        if self._unasked is None:
            self._unasked = domains.may_start_unasked(self._conn, xml_build.domain(plan))
        domains.domain_create(self._conn, xml_build.domain(replace(plan, unasked=self._unasked)))

    def _enclose(self, over: threading.Event, record: Record) -> None:
        """Put what runs now where it belongs, as soon as its QEMU runs: it may still be loading its memory."""
        name = self._names.of(record.body)
        pid_file = self._layout.libvirt / "run" / "qemu" / f"{name}.pid"
        while not over.is_set() and not (pid_file.exists() and pid_file.stat().st_size):
            time.sleep(0.002)
        tap_move(record.tap, name)
        try:
            pid = int(pid_file.read_text())
            if record.origin is Origin.CLONE and not record.machine:
                turn_after_others(pid)
            if self.groups is not None:
                self.groups.bound(record.body, pid, self._bounds(record))
        except (OSError, ValueError) as error:
            # Another libvirt than our own keeps its files, and bounds its machines, elsewhere
            if self.groups is not None:
                raise HypervisorError(f"its process could not be bounded: {error}") from error

    def _bounds(self, record: Record) -> Bounds:
        # QEMU's own memory beside the guest's, its translations included; half a core for its disk and its channel
        beside = self._config.tb_cache_mib + 512
        return Bounds(memory=(record.memory_mib + beside) * 2**20, cpus=record.spec.vcpus + 0.5)

    def _image(self, record: Record) -> Path:
        """Where in memory its save image lies."""
        return self._scratch / f"{record.body}.save"

    def _copy(self, record: Record) -> None:
        source, image = self._layout.template(record.template) / "memory.save", self._image(record)
        private_directory(self._scratch)  # whoever cleans /dev/shm does not know us
        try:
            xml = self._moved(record, source)
            with suppress(FileNotFoundError):
                self.spares.image(record.disks[1]).rename(image)
                if save_image.rewrite_in_place(image, xml):
                    return
            save_image.clone(source, image, xml)
        except (ValueError, FileNotFoundError) as error:
            raise HypervisorError(f"the template is no good: {error}") from error
        except OSError as error:
            raise HostFull(f"no memory for a clone's image ({error.strerror})") from error

    def _restore(self, image: Path, record: Record) -> None:
        self._layout.agent(record.body).unlink(missing_ok=True)
        if record.origin is not Origin.CLONE:
            try:
                xml = self._moved(record, image)
                if not save_image.rewrite_in_place(image, xml):
                    longer = image.with_suffix(".new")
                    save_image.clone(image, longer, xml)
                    longer.rename(image)
            except (ValueError, OSError) as error:
                raise HypervisorError(f"its saved memory cannot be read: {error}") from error
        domains.domain_restore(self._conn, image)

    def _moved(self, record: Record, image: Path) -> str:
        place = xml_build.Place(
            name=self._names.of(record.body),
            uuid=str(uuid.UUID(record.body)),
            disk=self._layout.disk(record.disks[0]),
            agent_socket=self._layout.agent(record.body),
            tap=record.tap,
            volumes={one.serial: self._layout.disk(one.layers[0]) for one in record.attached},
        )
        return xml_build.moved(save_image.read(image).xml, place)

    def _plan(self, record: Record) -> xml_build.DomainPlan:
        image = image_find(self._config.image_cache, record.image)
        return xml_build.DomainPlan(
            name=self._names.of(record.body),
            uuid=str(uuid.UUID(record.body)),
            accelerator=self._accelerator,
            memory_mib=record.memory_mib,
            vcpus=record.spec.vcpus,
            kernel=image.kernel,
            initrd=image.initrd,
            cmdline=image.cmdline,
            disk=self._layout.disk(record.disks[0]),
            agent_socket=self._layout.agent(record.body),
            tap=record.tap,
            mac=MAC,
            tb_cache_mib=self._config.tb_cache_mib,
            bounds=self._bounds(record) if self._libvirt_bounds else None,
        )

    async def _blocking[T](self, record: Record, work: Callable[[], T], *, deadline: float = _QUICK) -> T:
        return await self._lanes.run(self._names.of(record.body), work, deadline=deadline)

    # -- the agent

    async def _await_agent(self, channel: Channel) -> None:
        until = time.monotonic() + self._config.boot_patience
        while True:
            try:
                async with asyncio.timeout(10):
                    await ask(channel, "ping", patience=until - time.monotonic())
                return
            except (StreamReset, TimeoutError) as error:
                # A link that breaks while the guest starts is made anew by its keeper
                if time.monotonic() >= until:
                    raise MachineFailed(
                        f"its agent did not answer within {self._config.boot_patience:.0f} s"
                    ) from error

    async def _have_trusted(self, record: Record, channel: Channel) -> None:
        """Tell a guest that has just booted whom to trust; what is restored remembers it."""
        certificates = authorities(self._config, self._layout)
        try:
            hashes = await asyncio.to_thread(lambda: [authority_hash(one) for one in certificates])
            params = {"certificates": certificates, "hashes": hashes}
            async with asyncio.timeout(30):
                await ask(channel, "trust", params)
        except (MachineFailed, CommandFailed, TimeoutError) as error:
            # As on a disk that is full: its owner must be able to make room
            log.warning("machine %s does not trust this installation: %s", record.machine, error)

    async def introduce(self, record: Record, channel: Channel) -> None:
        """Tell the agent of a machine that has just come up what it must know before anybody is let in."""
        with timed(record, "identity"):
            if record.origin is Origin.RESUME:
                async with asyncio.timeout(30):
                    await ask(channel, "wake", {"time": time.time(), "entropy": _entropy()}, early=True)
            else:
                # A fork's environment is in its memory, newer than what its original was started with; who goes on from
                # a memory that was kept is somebody else
                await self.identify(record, channel, env=record.origin is not Origin.FORK or bool(record.template))

    async def identify(self, record: Record, channel: Channel, *, env: bool = True) -> None:
        """Tell the agent who it is. Repeatable."""
        identity = record.spec.identity
        params = {
            "hostname": identity.hostname,
            "env": dict(identity.env) if env else {},
            "time": time.time(),
            "entropy": _entropy(),
        }
        async with asyncio.timeout(30):
            await ask(channel, "identity", params, early=True)


def authorities(config: NodeConfig, layout: Layout) -> list[str]:
    """Whom guests trust beside their distribution's authorities, as PEM: the installation, and whom the host does."""
    paths = [layout.authority, *(host_certificates() if config.trust_host_store else [])]
    return [path.read_text() for path in paths]


def _entropy() -> str:
    return base64.b64encode(secrets.token_bytes(64)).decode()
