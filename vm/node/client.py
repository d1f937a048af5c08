"""Speaks the Node protocol of vm.api to a node process over its unix socket; used by sandboxes.runtime."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vm.api import (
    ByteStream,
    EgressPolicy,
    HostInfo,
    MachineId,
    MachineInfo,
    MachineSpec,
    PassageBatch,
    Secret,
    VolumeId,
    VolumeInfo,
    VolumeMount,
    machine_info_from_json,
    passages_from_json,
    volume_info_from_json,
)
from vm.errors import BY_CODE, NodeUnreachable, VmError
from vm.node import capability, wire

_SAVING = 320.0  # seconds for verbs that write a machine's memory: the node has a deadline of its own
_PATIENCE = 60.0  # for verbs that the node answers when the work is done, such as machine_stop


class NodeClient:
    """A node at `socket_path`; `key` signs capabilities: the key itself, or the file that holds it.

    Each call is a connection of its own, so the client may be used from any event loop and needs no closing.
    """

    def __init__(self, socket_path: Path, key: Path | bytes, *, connect_timeout: float = 5.0) -> None:
        self._socket = Path(socket_path)
        self._key = key
        self._connect_timeout = connect_timeout

    async def machine_start(self, spec: MachineSpec, *, secrets: Sequence[Secret] = ()) -> MachineInfo:
        """See vm.api.Node."""
        params = {"spec": _spec_to_json(spec), "secrets": _secrets_to_json(secrets)}
        return machine_info_from_json(await self._call("machine_start", spec.machine, params))

    async def machine_wait(self, machine: MachineId, *, timeout: float) -> MachineInfo:
        """See vm.api.Node."""
        answer = await self._call("machine_wait", machine, {"timeout": timeout}, patience=timeout + 10)
        return machine_info_from_json(answer)

    async def machine_get(self, machine: MachineId) -> MachineInfo:
        """See vm.api.Node."""
        return machine_info_from_json(await self._call("machine_get", machine))

    async def machine_list(self) -> list[MachineInfo]:
        """See vm.api.Node."""
        found: list[MachineInfo] = []
        while True:
            page = await self._call("machine_list", "", {"after": found[-1].machine if found else ""})
            found += [machine_info_from_json(info) for info in page]
            if len(page) < wire.LISTED:
                return found

    async def machine_stop(self, machine: MachineId, *, detail: str = "") -> MachineInfo:
        """See vm.api.Node."""
        return machine_info_from_json(await self._call("machine_stop", machine, {"detail": detail}))

    async def machine_suspend(self, machine: MachineId) -> MachineInfo:
        """See vm.api.Node."""
        return machine_info_from_json(await self._call("machine_suspend", machine, patience=_SAVING))

    async def machine_resume(self, machine: MachineId) -> MachineInfo:
        """See vm.api.Node."""
        return machine_info_from_json(await self._call("machine_resume", machine))

    async def machine_fork(
        self, source: MachineId, spec: MachineSpec, *, secrets: Sequence[Secret] = ()
    ) -> MachineInfo:
        """See vm.api.Node."""
        params = {"spec": _spec_to_json(spec), "secrets": _secrets_to_json(secrets)}
        return machine_info_from_json(await self._call("machine_fork", source, params, patience=_SAVING))

    async def machine_policy(
        self, machine: MachineId, policy: EgressPolicy, *, secrets: Sequence[Secret] = ()
    ) -> MachineInfo:
        """See vm.api.Node."""
        params = {"policy": asdict(policy), "secrets": _secrets_to_json(secrets)}
        return machine_info_from_json(await self._call("machine_policy", machine, params))

    async def egress_passages(self, cursor: str, limit: int) -> PassageBatch:
        """See vm.api.Node."""
        return passages_from_json(await self._call("egress_passages", "", {"cursor": cursor, "limit": limit}))

    async def volume_create(self, volume: VolumeId, *, capacity: int, source: str = "") -> VolumeInfo:
        """See vm.api.Node."""
        params = {"capacity": capacity, "source": source}
        return volume_info_from_json(await self._call("volume_create", volume, params))

    async def volume_snapshot(self, volume: VolumeId, snapshot: VolumeId) -> VolumeInfo:
        """See vm.api.Node."""
        answer = await self._call("volume_snapshot", volume, {"snapshot": snapshot}, patience=_SAVING)
        return volume_info_from_json(answer)

    async def volume_grow(self, volume: VolumeId, *, capacity: int) -> VolumeInfo:
        """See vm.api.Node."""
        return volume_info_from_json(await self._call("volume_grow", volume, {"capacity": capacity}))

    async def machine_snapshot(self, machine: MachineId, snapshot: VolumeId, *, memory: bool = False) -> VolumeInfo:
        """See vm.api.Node."""
        params = {"snapshot": snapshot, "memory": memory}
        answer = await self._call("machine_snapshot", machine, params, patience=_SAVING)
        return volume_info_from_json(answer)

    async def machine_restore(self, machine: MachineId, snapshot: VolumeId) -> None:
        """See vm.api.Node."""
        await self._call("machine_restore", machine, {"snapshot": snapshot}, patience=_SAVING)

    async def volume_list(self) -> list[VolumeInfo]:
        """See vm.api.Node."""
        return [volume_info_from_json(info) for info in await self._call("volume_list", "")]

    async def volume_attach(self, machine: MachineId, mount: VolumeMount) -> None:
        """See vm.api.Node."""
        await self._call("volume_attach", machine, {"mount": asdict(mount)})

    async def volume_detach(self, machine: MachineId, volume: VolumeId) -> None:
        """See vm.api.Node."""
        await self._call("volume_detach", machine, {"volume": volume})

    async def volume_remove(self, volume: VolumeId) -> None:
        """See vm.api.Node."""
        await self._call("volume_remove", volume)

    async def machine_forget(self, machine: MachineId) -> None:
        """See vm.api.Node."""
        await self._call("machine_forget", machine)

    async def host_info(self) -> HostInfo:
        """See vm.api.Node."""
        answer = await self._call("host_info", "")
        return HostInfo(**{**answer, "registries": tuple(answer["registries"])})

    async def stream_open(self, machine: MachineId) -> ByteStream:
        """See vm.api.Node."""
        answered = await self._ask("stream", machine, {}, patience=_PATIENCE)
        return wire.ChunkStream(answered.reader, answered.writer)

    async def events(self) -> AsyncIterator[MachineInfo]:
        """See vm.api.Node."""
        answered = await self._ask("events", "", {}, patience=_PATIENCE)
        try:
            while True:
                try:
                    yield machine_info_from_json(await wire.read_record(answered.reader))
                except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                    raise NodeUnreachable("the node ended the connection") from error
        finally:
            answered.writer.transport.abort()

    async def _call(
        self, verb: str, machine: str, params: dict[str, Any] | None = None, *, patience: float = _PATIENCE
    ) -> Any:
        answered = await self._ask(verb, machine, params or {}, patience=patience)
        answered.writer.close()
        return answered.value

    async def _ask(self, verb: str, machine: str, params: dict[str, Any], *, patience: float) -> _Answered:
        """Connect, ask and get the node's ok; the connection stays open for what follows."""
        try:
            async with asyncio.timeout(self._connect_timeout):
                reader, writer = await asyncio.open_unix_connection(str(self._socket), limit=wire.PIECE)
        except (OSError, TimeoutError) as error:
            raise NodeUnreachable(f"the node does not answer at {self._socket.name}: is it running?") from error
        try:
            token = capability.mint(
                self._secret(), machine=machine, verbs=[verb], expires=time.time() + capability.LIFETIME
            )
            request = {"v": wire.VERSION, "verb": verb, "machine": machine, "capability": token, "params": params}
            async with asyncio.timeout(patience):
                writer.write(wire.record(request))
                await writer.drain()
                answer = await wire.read_record(reader)
            if "error" in answer:
                raise BY_CODE.get(answer["error"]["code"], VmError)(answer["error"]["detail"])
            return _Answered(reader, writer, answer["ok"])
        except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError) as error:
            writer.transport.abort()
            raise NodeUnreachable(f"the node gave no answer to {verb}") from error
        except BaseException:
            writer.transport.abort()
            raise

    def _secret(self) -> bytes:
        # Read for each call: an installation's key may be made after this client
        return self._key if isinstance(self._key, bytes) else read_key(self._key)


def _spec_to_json(spec: MachineSpec) -> dict[str, Any]:
    fields = asdict(spec)
    fields["identity"]["env"] = dict(spec.identity.env)
    return fields


def _secrets_to_json(secrets: Sequence[Secret]) -> list[dict[str, Any]]:
    return [asdict(secret) for secret in secrets]


@dataclass(frozen=True, slots=True)
class _Answered:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    value: Any


def read_key(path: Path) -> bytes:
    """The signing key in the file at `path`. NodeUnreachable if there is none to read."""
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise NodeUnreachable(f"the node's key cannot be read: {error.strerror}") from error
    if len(key) < 32:
        raise NodeUnreachable(f"the node's key in {path.name} is too short to be one")
    return key
