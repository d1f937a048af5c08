"""Calls to the agent inside a sandbox's machine, and the wait until there is one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from types import TracebackType
from typing import Any

from sandboxes import permissions, runtime
from sandboxes.database import in_thread
from sandboxes.errors import Invalid, NotRunning, Suspended, Unavailable
from sandboxes.models import Sandbox, SandboxState
from sandboxes.permissions import SYSTEM, Actor, AnyActor
from sandboxes.sentences import state_reason
from sandboxes.services.lifecycle import Asked, cause_of
from sandboxes.states import ENDED, PAUSED
from vm.api import MachineState
from vm.errors import MachineGone, VmError

ENDING_SECONDS = 1.0
"""For which an end of the machine is looked for behind a call that broke off: its stream may end before it has."""


class GuestFailed(Exception):
    """The operation failed inside the guest; `error` is the SDK's error object. From a guest: not to be trusted."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(str(error.get("message", "")))
        self.error = error


class GuestInvalid(Exception):
    """The agent did not accept the parameters; `issues` say which."""

    def __init__(self, issues: list[dict[str, Any]]) -> None:
        super().__init__("invalid parameters")
        self.issues = issues


class GuestUnknown(Exception):
    """The agent has no such method."""


class GuestCall:
    """One call to the agent. Use it as a context manager: leaving gives up whatever has not ended by itself.

    Every method raises Unavailable when the call broke off.
    """

    def __init__(self, call: runtime.GuestCall) -> None:
        self._call = call

    async def reply(self) -> Any:
        """The call's value; GuestFailed, GuestInvalid, GuestUnknown. Once, and before reading output."""
        with _translated():
            record = await self._call.reply()
        if "ok" in record:
            return record["ok"]
        if "unknown" in record:
            raise GuestUnknown
        if "invalid" in record:
            issues = record["invalid"]
            raise GuestInvalid([i for i in issues if isinstance(i, dict)][:100] if isinstance(issues, list) else [])
        error = record["error"]
        raise GuestFailed(error if isinstance(error, dict) else {})

    async def read(self, limit: int = 65_536) -> bytes:
        """Up to `limit` bytes of output; empty at its end."""
        with _translated():
            return await self._call.read(limit)

    async def read_all(self, limit: int) -> bytes | None:
        """The whole output, or None if it is more than `limit` bytes."""
        pieces, size = [], 0
        while piece := await self.read():
            size += len(piece)
            if size > limit:
                return None
            pieces.append(piece)
        return b"".join(pieces)

    async def records(self) -> AsyncIterator[Any]:
        """The records that follow the reply."""
        with _translated():
            async for record in self._call.records():
                yield record

    async def write(self, data: bytes) -> None:
        """A part of the input, waiting while the agent has no room."""
        with _translated():
            await self._call.write(data)

    async def end_input(self) -> None:
        """No more input. Repeatable."""
        with _translated():
            await self._call.end_input()

    async def abort(self) -> None:
        """Give it up. Repeatable; never raises."""
        await self._call.abort()

    async def __aenter__(self) -> GuestCall:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._call.abort()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except VmError as error:
        raise Unavailable(f"the machine's agent gave the call up: {error}") from error


async def guest_call(
    *,
    sandbox: Sandbox,
    method: str,
    params: Mapping[str, Any] | None = None,
    actor: AnyActor,
    session: str | None = None,
    more: bool = False,
) -> GuestCall:
    """Begin a call (docs/guest-protocol.md); `more` says that input follows.

    NotRunning with the reason when there is no machine, Unavailable when it is silent, Invalid for a long request.
    """
    permissions.require(actor, "sandbox.use", sandbox.organization_id)
    try:
        stream = await runtime.node().stream_open(sandbox.machine)
        return GuestCall(await runtime.GuestCall.begin(stream, method, params, session=session, more=more))
    except ValueError as error:
        raise Invalid(str(error)) from error
    except MachineGone:
        raise (await guest_gone(sandbox=sandbox) or _not_running(sandbox)) from None
    except VmError as error:
        raise Unavailable(f"the sandbox's machine cannot be reached: {error}") from error


async def guest_ready(*, sandbox: Sandbox, timeout: float = 300, asked: Asked | None = None) -> None:
    """Return once the guest answers. NotRunning with the reason if it will not, Unavailable after `timeout` seconds.

    It resumes nothing: one that is suspended will not answer, and Suspended says so at once. `asked`: that of the
    boot which is under way here, before which the node does not know the machine.
    """
    node = runtime.node()
    deadline = time.monotonic() + timeout
    if asked is not None:
        await asyncio.wait({asked}, timeout=timeout)
        info = asked.result() if asked.done() else None
        if info is not None and info.state is MachineState.READY and sandbox.state == SandboxState.RUNNING:
            return  # one from the pool
    while (left := deadline - time.monotonic()) > 0:
        await in_thread(sandbox.refresh_from_db)
        if (gone := _gone(sandbox)) is not None:
            raise gone
        try:
            # Not for long: a resume that has to be put off leaves the machine as it is, and only the row tells.
            info = await node.machine_wait(sandbox.machine, timeout=min(left, 5))
        except MachineGone:
            info = None
        except VmError as error:
            raise Unavailable(f"the sandbox's host does not answer: {error}") from error
        if info is not None and info.state in (MachineState.READY, MachineState.LOST):
            return
        if info is None or info.state is MachineState.STOPPED:
            # Its row says why in a moment, or the machine is about to be made.
            await asyncio.sleep(0.05)
    raise Unavailable("the sandbox did not start in time")


async def guest_gone(*, sandbox: Sandbox) -> NotRunning | None:
    """The reason for a call that broke off, if its sandbox has ended or is suspended.

    The machine's host is asked as well: it knows of an end at once, or in a moment, and the row seconds later.
    """
    until = time.monotonic() + ENDING_SECONDS
    while True:
        await in_thread(sandbox.refresh_from_db)
        if (gone := _gone(sandbox)) is not None:
            return gone
        try:
            info = await runtime.node().machine_get(sandbox.machine)
        except VmError:
            return None
        if info.state is MachineState.STOPPED and info.since > sandbox.state_since.timestamp():
            told = copy(sandbox)
            told.state, told.stop_cause, told.stop_detail = SandboxState.STOPPED, cause_of(info), info.detail
            return _not_running(told)
        if time.monotonic() > until:
            return None
        await asyncio.sleep(0.1)


def _gone(sandbox: Sandbox) -> NotRunning | None:
    return _not_running(sandbox) if sandbox.state in ENDED or sandbox.state in PAUSED else None


def _not_running(sandbox: Sandbox) -> NotRunning:
    reason = state_reason(sandbox)
    if sandbox.state in PAUSED:
        return Suspended(f"the sandbox is {reason or sandbox.state}: resume it to go on")
    return NotRunning(f"the sandbox is not running: {reason}" if reason else f"the sandbox is {sandbox.state}")


async def guest_resources(*, sandbox: Sandbox, actor: Actor) -> dict[str, Any]:
    """What the machine uses, as its agent says, for showing only. NotRunning, Unavailable.

    Who may see the sandbox may see this; it is no use of it.
    """
    permissions.require(actor, "sandbox.view", sandbox.organization_id)
    if sandbox.state != SandboxState.RUNNING:
        raise _not_running(sandbox)
    try:
        info = await runtime.node().machine_get(sandbox.machine)
        async with asyncio.timeout(10), await guest_call(sandbox=sandbox, method="usage", actor=SYSTEM) as call:
            said = await call.reply()
    except MachineGone:
        await in_thread(sandbox.refresh_from_db)
        raise _not_running(sandbox) from None
    except (VmError, TimeoutError, GuestFailed, GuestInvalid, GuestUnknown) as error:
        raise Unavailable(f"the machine's agent does not say: {error}") from error
    said = said if isinstance(said, dict) else {}
    load = said.get("load")
    sizes = ("memory_total", "memory_available", "disk_total", "disk_free", "processes")
    return {
        **{name: max(0, int(_number(said.get(name)))) for name in sizes},
        "load": [_number(value) for value in load[:3]] if isinstance(load, list) else [],
        "cpu_seconds": round(info.cpu_seconds, 3),
    }


async def guest_ports(*, sandbox: Sandbox, actor: Actor) -> list[dict[str, Any]]:
    """What its programs listen on, as its agent says: `{"port", "address", "command"}`. NotRunning, Unavailable."""
    permissions.require(actor, "sandbox.use", sandbox.organization_id)
    if sandbox.state != SandboxState.RUNNING:
        raise _not_running(sandbox)
    try:
        async with asyncio.timeout(10), await guest_call(sandbox=sandbox, method="port.list", actor=SYSTEM) as call:
            said = await call.reply()
    except (TimeoutError, GuestFailed, GuestInvalid, GuestUnknown) as error:
        raise Unavailable(f"the machine's agent does not say: {error}") from error
    found = [one for one in said if isinstance(one, dict)] if isinstance(said, list) else []
    return [
        {"port": port, "address": str(one.get("address"))[:64], "command": str(one.get("command") or "")[:64]}
        for one in found[:500]
        if isinstance(port := one.get("port"), int) and 0 < port < 65_536
    ]


def _number(value: Any) -> float:
    """A number of a guest's, which may say anything."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and -1e18 < value < 1e18
    return value if usable else 0.0
