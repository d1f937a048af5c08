"""What only Deno's processes can be asked: to evaluate in a REPL, and whether they serve already.

A REPL was started as `deno repl --json` with a socket as descriptor 3. On it a frame is a little-endian u32 length and
JSON: {"type": "Run", "code", "output": true} is answered by {"type": "RunSuccess", "output": String(value)},
{"type": "RunFailure"} for what was thrown, or {"type": "Error", "error"} for what could not be parsed; `_` is the last
value then, and `_error` the last error.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from typing import Any
from weakref import WeakKeyDictionary

from vm.guest.agent import sockets
from vm.guest.agent.calls import MAX_REPLY, Call, Methods
from vm.guest.agent.errors import Refusal, bad_resource, gone
from vm.guest.agent.processes import Process, Processes
from vm.guest.agent.spawner import Spawner
from vm.guest.agent.workers import Workers

# undefined and functions have no JSON
_VALUE = "JSON.stringify(_) ?? 'null'"
_ERROR = (
    "JSON.stringify(_error instanceof Error"
    " ? {constructorName: _error.constructor.name, name: _error.name, message: _error.message, stack: _error.stack}"
    " : {constructorName: 'Error', message: String(_error)})"
)
_CLOSING = 2.0  # seconds for a REPL to end by itself
_PAUSES = (0.05, 0.1, 0.25, 0.5)  # seconds between two looks; the last one for a minute's worth of them
_LATE_PAUSE = 2.0
_SOON = 120


class Repl:
    """The socket of one REPL; evaluations take turns."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours
        self._turn = asyncio.Lock()

    async def evaluate(self, code: str) -> str:
        """The JSON of the value. Refusal with what was thrown; EOFError where the REPL has ended."""
        async with self._turn:
            answer = await self._run(code)
            if answer.get("type") == "RunSuccess":
                answer = await self._run(_VALUE)
                if answer.get("type") == "RunSuccess":
                    return str(answer["output"])
            elif answer.get("type") == "Error":
                raise Refusal("SyntaxError", str(answer.get("error")).removeprefix("SyntaxError: "))
            thrown = await self._run(_ERROR)
        try:
            error = json.loads(thrown["output"])
            raise Refusal(
                str(error["constructorName"]), str(error["message"]), name=error.get("name"), stack=error.get("stack")
            )
        except (KeyError, ValueError, TypeError):
            raise Refusal("Error", "what was thrown cannot be told") from None

    async def _run(self, code: str) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        text = json.dumps({"type": "Run", "code": code, "output": True}).encode()
        try:
            await loop.sock_sendall(self._socket, len(text).to_bytes(4, "little") + text)
            length = int.from_bytes(await self._read(4), "little")
            if length > MAX_REPLY:
                while length:
                    length -= len(await self._read(min(length, 65_536)))
                raise Refusal("RangeError", f"The result is longer than {MAX_REPLY} bytes", "EMSGSIZE")
            answer: dict[str, Any] = json.loads(await self._read(length))
        except OSError:
            raise EOFError from None
        return answer

    async def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = await asyncio.get_running_loop().sock_recv(self._socket, count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)


class Deno:
    """The calls about Deno's processes."""

    def __init__(self, processes: Processes, spawner: Spawner, workers: Workers) -> None:
        self._processes = processes
        self._spawner = spawner
        self._workers = workers
        self._repls: WeakKeyDictionary[Process, Repl] = WeakKeyDictionary()
        self._evaluating: set[asyncio.Task[str]] = set()

    def declare(self, methods: Methods) -> None:
        """Add the calls."""
        methods.add("denoReplEval", self.evaluate, pid="integer", code="string")
        methods.add("denoReplClose", self.close, pid="integer")
        methods.add("denoHttpWait", self.serves, pid="integer")

    async def evaluate(self, call: Call, pid: int, code: str) -> str:
        """The value of the last expression as JSON. Refusal with what was thrown, or where the REPL has ended."""
        process = self._processes.find(pid)
        if process.status is not None:
            raise gone(pid)
        if process.control is None:
            raise bad_resource(f"The process {pid} is no REPL")
        repl = self._repls.get(process)
        if repl is None:
            repl = self._repls[process] = Repl(process.control)
        # Whoever asked may go away: its answer must still be taken, or it would be the next one's
        task = asyncio.get_running_loop().create_task(repl.evaluate(code))
        self._evaluating.add(task)
        task.add_done_callback(self._evaluated)
        try:
            return await asyncio.shield(task)
        except EOFError:
            raise gone(pid) from None

    def _evaluated(self, task: asyncio.Task[str]) -> None:
        self._evaluating.discard(task)
        if not task.cancelled():
            task.exception()

    async def close(self, call: Call, pid: int) -> None:
        """End a REPL: it is asked to, and made to where it is busy."""
        process = self._processes.find(pid)
        if process.status is not None:
            raise gone(pid)
        process.end_control()
        try:
            async with asyncio.timeout(_CLOSING):
                await process.exited.wait()
        except TimeoutError:
            await asyncio.shield(self._spawner.kill(pid, signal.SIGKILL))
            await process.exited.wait()

    async def serves(self, call: Call, pid: int) -> bool:
        """True once the process, or one that it started, listens on a TCP port; False when it has ended before."""
        process = self._processes.find(pid)
        looks = 0
        while process.status is None:
            if await self._workers.run(sockets.ports_of, pid):
                return True
            looks += 1
            pause = _PAUSES[min(looks // 10, len(_PAUSES) - 1)] if looks < _SOON else _LATE_PAUSE
            if await _ended(process, pause):
                break
        return False


async def _ended(process: Process, pause: float) -> bool:
    try:
        async with asyncio.timeout(pause):
            await process.exited.wait()
    except TimeoutError:
        return False
    return True
