"""The node process: one connection is one call, checked by peer and capability, and streams are relayed untouched."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import pwd
import resource
import signal
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from typing import Any

from vm.api import ByteStream, MachineInfo, machine_info_to_json, passages_to_json
from vm.background import spawn
from vm.errors import HypervisorError, NotAllowed, StreamReset, VmError
from vm.host import kvm
from vm.host.confine import undumpable
from vm.libvirt.connection import Connection, Event, QemuUser, open_embedded
from vm.node import capability, wire
from vm.node.client import read_key
from vm.node.config import NodeConfig
from vm.node.hostinfo import host_info
from vm.node.lanes import Lanes
from vm.node.machines import Machines
from vm.node.reaper import reap_on_sigchld
from vm.node.records import Names, mount_from_json, policy_from_json, secrets_from_json, spec_from_json
from vm.node.settle import settle
from vm.node.sweep import sweep_for_ever
from vm.storage.images import image_find
from vm.storage.layout import Layout

log = logging.getLogger("atoll.node")

_ASKING = 10.0  # seconds a peer has to say what it wants
_CREDENTIALS = struct.Struct("3i")
_FILES = 65_536


class CannotServe(Exception):
    """This node cannot run; the message is one line for people."""


async def serve(config: NodeConfig) -> None:
    """Run a node until SIGTERM or SIGINT; machines run on afterwards. CannotServe says why it did not start."""
    layout = Layout(config.data)
    if excess := layout.too_long():
        raise CannotServe(f"the path {config.data} is {excess} characters too long for the sockets below it")
    with _only_one(layout):
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        _bound_ourselves()
        reap_on_sigchld()
        lanes = Lanes()
        try:
            machines, accelerator = await _machines(config, layout, lanes)
            machines.doors.interceptors.start()
            try:
                await settle(machines)
                server = Server(config, machines, accelerator)
                sweeping = spawn(sweep_for_ever(machines), name="sweep")
                try:
                    await server.run(stopping)
                finally:
                    sweeping.cancel()
                    await asyncio.wait([sweeping])
            finally:
                await machines.close()
                machines.conn.close()
        except VmError as error:
            raise CannotServe(error.detail) from error
        finally:
            lanes.close()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                loop.remove_signal_handler(number)


async def _machines(config: NodeConfig, layout: Layout, lanes: Lanes) -> tuple[Machines, str]:
    layout.agents.mkdir(mode=0o711, parents=True, exist_ok=True)
    names = Names(layout)
    try:
        user = pwd.getpwnam(config.machine_user)
    except KeyError as error:
        raise CannotServe(f"there is no user {config.machine_user}: `make up` makes it") from error
    if config.accelerator:
        accelerator = config.accelerator
    else:
        kernel = image_find(config.image_cache, config.image).kernel
        found = await lanes.run("host", lambda: kvm.decide(kernel, layout.probe), deadline=60)
        accelerator = "kvm" if found.usable else "tcg"
        log.info("machines use %s: %s", accelerator, found.why)
    loop = asyncio.get_running_loop()
    machines: Machines

    def told(event: Event) -> None:
        loop.call_soon_threadsafe(lambda: machines.ending.happened(event))

    def connect() -> Connection:
        kvm.let_in(config.machine_user)
        if config.libvirt_uri:
            return Connection(config.libvirt_uri, told)
        return open_embedded(layout.libvirt, QemuUser(user.pw_name, user.pw_uid, user.pw_gid), told)

    conn = await lanes.run("host", connect, deadline=60)
    machines = Machines(config, layout, names, lanes, conn, accelerator)
    return machines, accelerator


@contextmanager
def _only_one(layout: Layout) -> Iterator[None]:
    layout.run.mkdir(parents=True, exist_ok=True)
    layout.machines.mkdir(mode=0o711, parents=True, exist_ok=True)
    with layout.lock.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            other = lock.read().strip()
            raise CannotServe(f"another node (process {other}) runs on {layout.data} already") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _bound_ourselves() -> None:
    # Secrets, and identities with people's environment variables: they must not end up in a core dump
    undumpable()
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Server:
    """Answers on the node's socket."""

    def __init__(self, config: NodeConfig, machines: Machines, accelerator: str) -> None:
        self._config = config
        self._machines = machines
        self._accelerator = accelerator
        self._key = read_key(config.key_file)
        try:
            service = pwd.getpwnam(config.service_user)
        except KeyError as error:
            raise CannotServe(f"there is no user {config.service_user}: `make up` makes it") from error
        self._allowed = {0, service.pw_uid}
        self._group = service.pw_gid
        self._calls: set[asyncio.Task[None]] = set()
        self._verbs: Mapping[str, Callable[[str, dict[str, Any]], Awaitable[Any]]] = {
            "machine_start": self._machine_start,
            "machine_wait": self._machine_wait,
            "machine_get": self._machine_get,
            "machine_list": self._machine_list,
            "machine_stop": self._machine_stop,
            "machine_suspend": self._machine_suspend,
            "machine_resume": self._machine_resume,
            "machine_fork": self._machine_fork,
            "machine_policy": self._machine_policy,
            "egress_passages": self._egress_passages,
            "machine_forget": self._machine_forget,
            "volume_create": self._volume_create,
            "volume_list": self._volume_list,
            "machine_snapshot": self._machine_snapshot,
            "machine_restore": self._machine_restore,
            "volume_grow": self._volume_grow,
            "volume_snapshot": self._volume_snapshot,
            "volume_remove": self._volume_remove,
            "volume_attach": self._volume_attach,
            "volume_detach": self._volume_detach,
            "host_info": self._host_info,
        }

    async def run(self, stopping: asyncio.Event) -> None:
        """Serve until `stopping` is set."""
        path = self._machines.layout.socket
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            server = await asyncio.start_unix_server(self._accepted, str(path), limit=wire.PIECE, backlog=512)
        finally:
            os.umask(before)
        os.chown(path, 0, self._group)
        path.chmod(0o660)
        log.info("serving at %s", path)
        try:
            await stopping.wait()
        finally:
            server.close()
            path.unlink(missing_ok=True)
            for task in list(self._calls):
                task.cancel()
            if self._calls:
                await asyncio.wait(self._calls, timeout=5)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = spawn(self._served(reader, writer), name="node call")
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _served(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            try:
                async with asyncio.timeout(_ASKING):
                    request = await wire.read_record(reader)
                self._require_allowed(writer, request)
                await self._answer(request, reader, writer)
            except VmError as error:
                writer.write(wire.record({"error": {"code": error.code, "detail": error.detail}}))
                await writer.drain()
            except (KeyError, TypeError, ValueError) as error:
                detail = f"the request is not understood: {type(error).__name__} {error}"
                writer.write(wire.record({"error": {"code": HypervisorError.code, "detail": detail[:500]}}))
                await writer.drain()
            writer.close()
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            pass  # the peer went away, or never said anything
        finally:
            if not writer.transport.is_closing():
                writer.transport.abort()

    def _require_allowed(self, writer: asyncio.StreamWriter, request: dict[str, Any]) -> None:
        peer: socket.socket = writer.get_extra_info("socket")
        _pid, uid, _gid = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if uid not in self._allowed:
            raise NotAllowed(f"the user {uid} may not talk to this node")
        if request["v"] != wire.VERSION:
            raise HypervisorError(f"this node speaks version {wire.VERSION}, not {request['v']}")
        capability.require(self._key, request["capability"], machine=request["machine"], verb=request["verb"])

    async def _answer(
        self, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        verb, machine, params = request["verb"], request["machine"], request["params"]
        if verb == "stream":
            await self._stream(machine, reader, writer)
        elif verb == "events":
            await self._events(reader, writer)
        elif verb in self._verbs:
            answer = await self._verbs[verb](machine, params)
            await self._machines.roster.written()
            writer.write(wire.record({"ok": answer}))
            await writer.drain()
        else:
            raise HypervisorError(f"this node has no verb {verb}")

    # -- verbs

    async def _machine_start(self, machine: str, params: dict[str, Any]) -> Any:
        spec = spec_from_json(params["spec"])
        if spec.machine != machine:
            raise NotAllowed("the capability is for another machine")
        return machine_info_to_json(await self._machines.start(spec, secrets_from_json(params["secrets"])))

    async def _machine_wait(self, machine: str, params: dict[str, Any]) -> Any:
        return machine_info_to_json(await self._machines.roster.wait(machine, float(params["timeout"])))

    async def _machine_get(self, machine: str, params: dict[str, Any]) -> Any:
        return machine_info_to_json(self._machines.info(machine))

    async def _machine_list(self, machine: str, params: dict[str, Any]) -> Any:
        # In pages: an answer is one message, and has a bound. Whatever is there all the while is in one of them.
        after = str(params.get("after", ""))
        infos = sorted(self._machines.infos(), key=lambda info: info.machine)
        return [machine_info_to_json(info) for info in infos if info.machine > after][: wire.LISTED]

    async def _machine_stop(self, machine: str, params: dict[str, Any]) -> Any:
        return machine_info_to_json(await self._machines.ending.stop(machine, str(params.get("detail", ""))))

    async def _machine_suspend(self, machine: str, params: dict[str, Any]) -> Any:
        return machine_info_to_json(await self._machines.suspending.suspend(machine))

    async def _machine_resume(self, machine: str, params: dict[str, Any]) -> Any:
        return machine_info_to_json(await self._machines.suspending.resume(machine))

    async def _machine_fork(self, machine: str, params: dict[str, Any]) -> Any:
        spec, secrets = spec_from_json(params["spec"]), secrets_from_json(params["secrets"])
        return machine_info_to_json(await self._machines.forking.fork(machine, spec, secrets))

    async def _machine_policy(self, machine: str, params: dict[str, Any]) -> Any:
        policy, secrets = policy_from_json(params["policy"]), secrets_from_json(params["secrets"])
        return machine_info_to_json(await self._machines.policy(machine, policy, secrets))

    async def _egress_passages(self, machine: str, params: dict[str, Any]) -> Any:
        return passages_to_json(await self._machines.passages(str(params["cursor"]), int(params["limit"])))

    async def _volume_create(self, volume: str, params: dict[str, Any]) -> Any:
        capacity, source = int(params["capacity"]), str(params["source"])
        return asdict(await self._machines.volumes.create(volume, capacity, source))

    async def _volume_snapshot(self, volume: str, params: dict[str, Any]) -> Any:
        return asdict(await self._machines.snapshots.snapshot(volume, str(params["snapshot"])))

    async def _volume_grow(self, volume: str, params: dict[str, Any]) -> Any:
        return asdict(await self._machines.snapshots.grow(volume, int(params["capacity"])))

    async def _machine_snapshot(self, machine: str, params: dict[str, Any]) -> Any:
        return asdict(
            await self._machines.machine_snapshot(
                machine, str(params["snapshot"]), memory=bool(params.get("memory", False))
            )
        )

    async def _machine_restore(self, machine: str, params: dict[str, Any]) -> None:
        await self._machines.machine_restore(machine, str(params["snapshot"]))

    async def _volume_list(self, volume: str, params: dict[str, Any]) -> Any:
        return [asdict(info) for info in await self._machines.volumes.list()]

    async def _volume_attach(self, machine: str, params: dict[str, Any]) -> None:
        await self._machines.volume_attach(machine, mount_from_json(params["mount"]))

    async def _volume_detach(self, machine: str, params: dict[str, Any]) -> None:
        await self._machines.volume_detach(machine, str(params["volume"]))

    async def _volume_remove(self, volume: str, params: dict[str, Any]) -> Any:
        await self._machines.volumes.remove(volume)

    async def _machine_forget(self, machine: str, params: dict[str, Any]) -> Any:
        await self._machines.forget(machine)

    async def _host_info(self, machine: str, params: dict[str, Any]) -> Any:
        pool = self._machines.pool
        info = host_info(self._config, self._accelerator)
        templates = len(self._machines.templates.sizes())
        info = replace(info, templates=templates, pool_ready=pool.ready, pool_wanted=pool.wanted)
        alive, wanted = self._machines.doors.interceptors.alive, self._config.interceptors
        tag = self._machines.names.data_tag
        return asdict(replace(info, interceptors=alive, interceptors_wanted=wanted, data_tag=tag))

    # -- connections that stay

    async def _events(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with self._machines.roster.subscription() as changes:
            # Subscribed before the ok: what happens after it is not missed
            following = spawn(self._follow(changes, writer), name="node events")
            leaving = spawn(_until_gone(reader), name="node events peer")
            try:
                await asyncio.wait([following, leaving], return_when=asyncio.FIRST_COMPLETED)
            finally:
                following.cancel()
                leaving.cancel()
                await asyncio.wait([following, leaving])

    async def _follow(self, changes: asyncio.Queue[MachineInfo | None], writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(wire.record({"ok": None}))
            while (info := await changes.get()) is not None:
                writer.write(wire.record(machine_info_to_json(info)))
                await writer.drain()

    async def _stream(self, machine: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        guest = await self._machines.open_stream(machine)
        try:
            writer.write(wire.record({"ok": None}))
            await relay(wire.ChunkStream(reader, writer), guest)
        finally:
            await guest.abort()


async def relay(peer: wire.ChunkStream, guest: ByteStream) -> None:
    """Carry bytes both ways until both have ended, or either broke off; then both are. Holds one piece each way."""
    to_guest = spawn(_carry(peer, guest), name="relay to guest")
    to_peer = spawn(_carry(guest, peer), name="relay to peer")
    ways: list[asyncio.Task[Any]] = [to_guest, to_peer]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        if not to_guest.done() and to_peer.result():
            await to_guest
        elif not to_peer.done() and to_guest.result():
            # It has nothing more to say, and a guest may say nothing for days: else nobody would see it leave
            ways.append(spawn(peer.gone(), name="relay's peer"))
            await asyncio.wait(ways[1:], return_when=asyncio.FIRST_COMPLETED)
    finally:
        under_way = [way for way in ways if not way.done()]
        for way in under_way:
            way.cancel()
        if under_way:
            await asyncio.wait(under_way)
        await guest.abort()
        await peer.abort()


async def _carry(source: ByteStream, sink: ByteStream) -> bool:
    """Carry one way; False if it broke off."""
    try:
        while data := await source.read(wire.PIECE):
            await sink.write(data)
        await sink.end()
    except StreamReset:
        return False
    return True


async def _until_gone(reader: asyncio.StreamReader) -> None:
    with suppress(OSError):
        await reader.read(1)
