"""The hooks of one interceptor, each in a process of its own: one that fails, hangs or dies denies what passes it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vm.egress.hooks import (
    MAX_CALL,
    Hook,
    Request,
    Response,
    parse_hooks,
    request_from_json,
    request_to_json,
    require_showable,
    response_from_json,
    response_to_json,
)
from vm.node import wire

log = logging.getLogger("atoll.interceptor")

SECONDS = 5
"""What one call may take, and as much again the wait for those before it."""
_LOADING = 20
_OFTEN = 10.0  # seconds after which a failure is logged again
_CHECKOUT = Path(__file__).resolve().parents[3]


class HookDenied(Exception):
    """A hook lets this not pass; the message is a clause for people, without a word of what passed."""


class _Process:
    """One hook's. It is started at the first call, and anew after it ended; calls go one after the other."""

    def __init__(self, hook: Hook, place: str) -> None:
        self.hook = hook
        self._place = place
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._talking: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._logged = -1e9

    async def call(self, room: asyncio.Semaphore, request: Request, response: Response | None = None) -> dict[str, Any]:
        """What it said. HookDenied. `room` is what one machine may take of it at a time."""
        asked = self._shown(request, response)
        try:
            async with asyncio.timeout(SECONDS) as limit, room, self._turn:
                now = asyncio.get_running_loop().time
                limit.reschedule(now() + _LOADING)
                reader, writer = await self._running()
                limit.reschedule(now() + SECONDS)
                said = await self._talk(asked, reader, writer)
        except TimeoutError:
            raise self._failed(f"did not answer within {SECONDS} seconds") from None
        except (OSError, ValueError, asyncio.IncompleteReadError):
            raise self._failed("ended without an answer") from None
        if "refused" in said:
            raise HookDenied(f"the hook {self.hook.call} refused it: {said['refused']}")
        if "failed" in said:
            raise self._failed(f"failed: {said['failed']}")
        return said

    def _shown(self, request: Request, response: Response | None) -> bytes:
        # Whatever its process could not read would end it, for all whose calls it takes
        try:
            require_showable(request if response is None else response)
            said = response_to_json(response) if response is not None else None
            asked = wire.record({"request": request_to_json(request), "response": said})
            if len(asked) > MAX_CALL:
                raise ValueError("it would be shown more than 4 MiB")
        except ValueError as error:
            raise HookDenied(f"the hook {self.hook.call} cannot be asked: {error}") from None
        return asked

    async def _talk(self, asked: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> dict[str, Any]:
        done = False
        try:
            writer.write(asked)
            await writer.drain()
            said = await wire.read_record(reader)
            done = True
            return said
        finally:
            # An answer that comes later would be taken for that to the next call
            if not done:
                self.end()

    async def _running(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._process is not None and self._process.returncode is None and self._talking is not None:
            return self._talking
        self.end()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "vm.egress.hook_process", str(theirs.fileno()), self.hook.call),
                str(_LOADING),
                cwd=_CHECKOUT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8", "PYTHONPATH": self._place},
            )
        talking = self._talking = await asyncio.open_connection(sock=ours, limit=wire.PIECE)
        try:
            said = await wire.read_record(talking[0])
        except BaseException:
            self.end()
            raise
        if "unloaded" in said:
            self.end()
            raise self._failed(f"could not be loaded: {said['unloaded']}")
        return talking

    def end(self) -> None:
        """Stop its process. Repeatable."""
        if self._talking is not None:
            self._talking[1].transport.abort()
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
        self._process = self._talking = None

    def _failed(self, why: str) -> HookDenied:
        if time.monotonic() - self._logged > _OFTEN:
            self._logged = time.monotonic()
            log.error("the hook %s %s", self.hook.call, why)
        return HookDenied(f"the hook {self.hook.call} {why}")


class Hooks:
    """Those of an interceptor."""

    def __init__(self, words: Sequence[str] = (), place: str = "") -> None:
        """`place` is the directory they are imported from. ValueError for a word that is none."""
        self._all = [_Process(hook, place) for hook in parse_hooks(words)]

    def of(self, host: str, port: int) -> Chain | None:
        """Those for a destination, in their order; None if there is none."""
        found = [one for one in self._all if one.hook.is_for(host, port)]
        return Chain(found) if found else None

    def close(self) -> None:
        """End their processes."""
        for one in self._all:
            one.end()


class Chain:
    """The hooks of one destination."""

    def __init__(self, processes: Sequence[_Process]) -> None:
        self._processes = processes

    async def request(self, room: asyncio.Semaphore, request: Request) -> Request:
        """A request as they leave it. HookDenied."""
        for one in self._processes:
            said = await one.call(room, request)
            if "request" in said:
                changed = _read(one, request_from_json, said["request"])
                if (changed.host, changed.port) != (request.host, request.port):
                    raise HookDenied(f"the hook {one.hook.call} names another host")
                _require_kept(one, request.body, changed.body)
                request = changed
        return request

    async def response(self, room: asyncio.Semaphore, request: Request, response: Response) -> Response:
        """An answer as they leave it, the last one first. HookDenied."""
        for one in reversed(self._processes):
            said = await one.call(room, request, response)
            if "response" in said:
                changed = _read(one, response_from_json, said["response"])
                _require_kept(one, response.body, changed.body)
                response = changed
        return response


def _read[T](one: _Process, read: Callable[[dict[str, Any]], T], data: dict[str, Any]) -> T:
    try:
        return read(data)
    except (ValueError, KeyError, TypeError, UnicodeError):
        raise HookDenied(f"the hook {one.hook.call} returned what cannot be sent") from None


def _require_kept(one: _Process, before: bytes | None, after: bytes | None) -> None:
    if (before is None) is not (after is None):
        raise HookDenied(f"the hook {one.hook.call} has a body where none can be, or none where one is")
