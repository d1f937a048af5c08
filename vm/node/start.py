"""Takes what a machine is made of, step by step, and gives it back: disk, namespace, domain, tap, channel, identity.

Each step finds what an earlier, killed attempt left, and `release` gives back all of it from any point, so that a node
killed at any line leaves nothing that the next one cannot settle.
"""

from __future__ import annotations

import asyncio
import base64
import pwd
import secrets
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from typing import Any

from vm.api import MachineId
from vm.errors import MachineFailed, StreamReset
from vm.guest.calls import call
from vm.guest.channel import Channel
from vm.libvirt import domains, xml_build
from vm.libvirt.connection import Connection
from vm.net import nftables
from vm.net.namespace import namespace_create, namespace_remove, tap_move, tap_remove
from vm.node.config import NodeConfig
from vm.node.lanes import Lanes
from vm.node.records import Names, Record
from vm.storage.images import image_find
from vm.storage.layout import Layout
from vm.storage.qcow2 import overlay_create

# The same in every machine, each in a namespace of its own: a clone of one must fit where another was.
MAC = "52:54:00:a7:01:01"
_QUICK = 30.0  # seconds that a blocking step may take before it has failed


class Starter:
    """Starts machines one step at a time; knows nothing of queues and states."""

    def __init__(
        self, config: NodeConfig, layout: Layout, names: Names, lanes: Lanes, conn: Connection, accelerator: str
    ) -> None:
        self._config = config
        self._layout = layout
        self._names = names
        self._lanes = lanes
        self._conn = conn
        self._accelerator = accelerator
        user = pwd.getpwnam(config.machine_user)
        self._owner = (user.pw_uid, user.pw_gid)

    async def start(self, record: Record, changed: Callable[[bool, str], None]) -> Channel:
        """Bring the machine up to an agent that has its identity; on failure nothing but its disk is left.

        `changed` is told when the channel's link comes and goes. Raises whatever VmError stopped it.
        """
        async with AsyncExitStack() as undo:
            record.stages.clear()
            with _stage(record, "disk"):
                await self._blocking(record, lambda: self._disk(record))
            undo.push_async_callback(self.release, record)
            with _stage(record, "network"):
                record.tap = self._names.next_tap()
                record.save(self._layout)
                await self._blocking(record, lambda: namespace_create(record.namespace, nftables.closed()))
            with _stage(record, "domain"):
                plan = self._plan(record)
                plan.agent_socket.unlink(missing_ok=True)
                await self._blocking(
                    record, lambda: domains.domain_create(self._conn, xml_build.domain(plan)), deadline=60
                )
            with _stage(record, "tap"):
                # Before its processor has run an instruction: the guest never sees a network it must not reach
                await self._blocking(record, lambda: tap_move(record.tap, record.namespace))
            with _stage(record, "agent"):
                await self._blocking(record, lambda: domains.domain_resume(self._conn, record.domain))
                channel = self.channel(record.machine, changed)
                undo.push_async_callback(channel.close)
                await self._await_agent(channel)
            with _stage(record, "identity"):
                await self.identify(record, channel)
            undo.pop_all()
            return channel

    def channel(self, machine: MachineId, changed: Callable[[bool, str], None]) -> Channel:
        """The channel to a machine that has a domain."""
        path = str(self._layout.agent(machine))

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
        """Give back all but the disk. Repeatable, also when only some of it was ever taken."""
        try:
            await self._blocking(record, lambda: domains.domain_destroy(self._conn, record.domain))
        finally:
            await self._blocking(record, lambda: self._network_gone(record))
            self._layout.agent(record.machine).unlink(missing_ok=True)

    def _network_gone(self, record: Record) -> None:
        namespace_remove(record.namespace)
        if record.tap:
            tap_remove(record.tap)

    async def _blocking(self, record: Record, work: Callable[[], None], *, deadline: float = _QUICK) -> None:
        await self._lanes.run(record.domain, work, deadline=deadline)

    def _disk(self, record: Record) -> None:
        disk = self._layout.disk(record.machine)
        if not disk.exists():
            image = image_find(self._config.image_cache, record.image)
            overlay_create(
                disk,
                backing=image.root,
                backing_format=image.root_format,
                size_gib=record.spec.disk_gib,
                owner=self._owner,
            )

    def _plan(self, record: Record) -> xml_build.DomainPlan:
        image = image_find(self._config.image_cache, record.image)
        return xml_build.DomainPlan(
            name=record.domain,
            uuid=str(uuid.UUID(record.machine)),
            accelerator=self._accelerator,
            memory_mib=record.spec.memory_mib,
            vcpus=record.spec.vcpus,
            kernel=image.kernel,
            initrd=image.initrd,
            cmdline=image.cmdline,
            disk=self._layout.disk(record.machine),
            agent_socket=self._layout.agent(record.machine),
            tap=record.tap,
            mac=MAC,
            tb_cache_mib=self._config.tb_cache_mib,
        )

    async def _await_agent(self, channel: Channel) -> None:
        until = time.monotonic() + self._config.boot_patience
        while True:
            try:
                stream = await channel.open(timeout=until - time.monotonic())
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + 10):
                    await expect_ok(call(stream, "ping"))
                return
            except (StreamReset, TimeoutError) as error:
                # A link that breaks while the guest starts is made anew by its keeper
                if time.monotonic() >= until:
                    raise MachineFailed(
                        f"its agent did not answer within {self._config.boot_patience:.0f} s"
                    ) from error

    async def identify(self, record: Record, channel: Channel) -> None:
        """Tell the agent who it is. Repeatable."""
        identity = record.spec.identity
        params = {
            "hostname": identity.hostname,
            "env": dict(identity.env),
            "time": time.time(),
            "entropy": base64.b64encode(secrets.token_bytes(64)).decode(),
        }
        async with asyncio.timeout(30):
            await expect_ok(call(await channel.open(), "identity", params))


async def expect_ok(reply: Any) -> Any:
    """The value of an awaited reply's ok. MachineFailed with the agent's own words otherwise."""
    answer: Mapping[str, Any] = await reply
    if "ok" not in answer:
        raise MachineFailed(f"its agent refused: {str(answer)[:300]}")
    return answer["ok"]


@contextmanager
def _stage(record: Record, name: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        record.stages[name] = round(time.monotonic() - began, 4)
