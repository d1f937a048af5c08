"""Processes: started, fed, read, waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from ide.rpc import envelope
from ide.rpc import params as check
from ide.rpc.connection import Connection, Method, new_stream_id
from ide.rpc.envelope import Failure, InvalidParams
from ide.rpc.handshake import Dialect, shell_names
from ide.rpc.incoming import Incoming
from sandboxes import background
from sandboxes.errors import DomainError
from sandboxes.permissions import SYSTEM
from sandboxes.services import streams
from sandboxes.services.streams import GuestCall, GuestFailed

log = structlog.get_logger("atoll.rpc")

type Seen = Callable[[bytes], Awaitable[None]]

MAX_PROCESSES = 120
"""Processes of one connection whose output is open; each has up to four of its machine's streams."""
UNASKED = 3.0
"""Seconds after which output is sent to a client that has not called `processWait`."""
HANDOVERS = 100
"""Times that a drain tries, a tenth of a second apart, to take a pipe over from a reader that gave up."""
TAIL = 0.5
"""Seconds for which the answer to `processWait` gives the last output precedence, and after which a pipe is quiet."""
ENDING = frozenset({"SIGHUP", "SIGINT", "SIGKILL", "SIGQUIT", "SIGTERM"})


async def spawn(connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
    """Start a process; its output follows on streams."""
    return await start(connection, params, check.only(params, "stdinStreamId", "control"))


async def start(
    connection: Connection, params: dict[str, Any], sent: dict[str, Any], *, seen: Seen | None = None
) -> dict[str, Any]:
    """Start what the agent's `spawn` is `sent` to, with the streams that the client's `params` ask for.

    `seen` gets each piece of its error output, which is then read even if the client wants none.
    """
    if len(connection.outputs) >= MAX_PROCESSES:
        raise Failure(-32000, f"more than {MAX_PROCESSES} processes are open on this connection")
    stdin = check.optional_integer(params, "stdinStreamId")
    incoming = None
    if stdin is not None and (incoming := connection.incoming.take(stdin)) is None:
        raise InvalidParams.one("stdinStreamId", "number", "there is no such stream")
    wanted = {name: _piped(params.get(name)) for name in ("stdout", "stderr")}
    sent = {**sent, **wanted, "stdin": "null" if stdin is None else "piped"}
    if seen is not None:
        sent["stderr"] = "piped"
    if connection.dialect is Dialect.PY and _is_text_map(sent.get("env")):
        sent["env"] = shell_names(sent["env"])
    try:
        pid = int((await connection.ask("spawn", sent))["pid"])
    except BaseException:
        if stdin is not None:
            await connection.incoming.done(stdin)
        raise
    ids = {name: new_stream_id() if kind == "piped" else None for name, kind in wanted.items()}
    for stream in ids.values():
        if stream is not None:
            await connection.send(envelope.stream_start(stream))
    gate = asyncio.Event()
    outputs = [
        connection.stream_out(
            stream,
            _output(connection, f"process.{name}", pid, stream, gate, seen if name == "stderr" else None),
        )
        for name, stream in ids.items()
        if stream is not None
    ]
    if seen is not None and ids["stderr"] is None:
        connection.beside(_look(connection, pid, seen))
    if outputs:
        connection.gates[pid] = gate
        connection.outputs[pid] = outputs
        connection.beside(_forget(connection, pid, outputs))
    if stdin is not None and incoming is not None:
        connection.beside(_input(connection, pid, stdin, incoming))
    return {"pid": pid, "stdoutStreamId": ids["stdout"], "stderrStreamId": ids["stderr"]}


def _piped(value: object) -> str:
    # "inherit" is the client's business; the literal comes through from one Python call.
    return "piped" if value in ("piped", "inherit") else "null"


def _is_text_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _output(
    connection: Connection, method: str, pid: int, stream: int, gate: asyncio.Event, seen: Seen | None = None
) -> Any:
    async def source() -> None:
        if connection.dialect is Dialect.PY:
            # It throws away what comes before it has begun to listen, and it listens when it waits.
            try:
                async with asyncio.timeout(UNASKED):
                    await gate.wait()
            except TimeoutError:
                pass
        try:
            async with await connection.guest(method, {"pid": pid}) as call:
                await call.reply()
                while data := await _read(connection, call):
                    if seen is not None:
                        await seen(data)
                    # Waits while the client does not read; then nobody reads the pipe, and the process waits too.
                    await connection.send(envelope.stream_data(stream, data))
        except asyncio.CancelledError:
            # The client takes no more, or is gone. A pipe that nobody reads would stop the process for ever.
            background.spawn(_drain(connection, method, pid), name=f"drain {method} of {pid}")
            raise

    return source


async def _read(connection: Connection, call: GuestCall) -> bytes:
    """What comes next, of which the connection knows for how long nothing has."""
    task: Any = asyncio.current_task()
    connection.quiet_since[task] = asyncio.get_running_loop().time()
    try:
        return await call.read()
    finally:
        del connection.quiet_since[task]


async def _look(connection: Connection, pid: int, seen: Seen) -> None:
    async with await connection.guest("process.stderr", {"pid": pid}) as call:
        await call.reply()
        while data := await call.read():
            await seen(data)


async def _drain(connection: Connection, method: str, pid: int) -> None:
    """Throw away what a process still writes, until it ends or its machine does."""
    for _ in range(HANDOVERS):
        try:
            async with await streams.guest_call(
                sandbox=connection.sandbox, method=method, params={"pid": pid}, actor=SYSTEM
            ) as call:
                await call.reply()
                while await call.read():
                    pass
                return
        except DomainError:
            return  # the machine is gone, and the process with it
        except GuestFailed as failed:
            if failed.error.get("constructorName") != "Busy":
                return  # the process is gone
            # The guest has not heard yet that the reader before us gave up
            await asyncio.sleep(0.1)
    log.warning("output of a process is not drained", sandbox=connection.sandbox.public_id, pid=pid)


async def _forget(connection: Connection, pid: int, outputs: list[asyncio.Task[None]]) -> None:
    await asyncio.wait(outputs)
    # A pid is used again at some time.
    if connection.outputs.get(pid) is outputs:
        del connection.outputs[pid], connection.gates[pid]
        connection.killed.discard(pid)


async def _input(connection: Connection, pid: int, stream: int, incoming: Incoming) -> None:
    try:
        async with await connection.guest("process.stdin", {"pid": pid}, more=True) as call:
            await call.reply()
            # Output ends when the process closed its stdin or is gone: nobody will take more then.
            closed = connection.beside(call.read())
            feed = connection.beside(_feed(call, incoming))
            try:
                await asyncio.wait({closed, feed}, return_when=asyncio.FIRST_COMPLETED)
                if not closed.done():
                    await closed
            finally:
                feed.cancel()
                closed.cancel()
                await asyncio.gather(feed, closed, return_exceptions=True)
    finally:
        await connection.incoming.done(stream)


async def _feed(call: Any, incoming: Incoming) -> None:
    try:
        while chunk := await incoming.read():
            await call.write(chunk)
    finally:
        # A sender that failed closes the process's stdin just as one that ended.
        await call.end_input()


async def process_wait(connection: Connection, params: dict[str, Any]) -> Any:
    """The exit status, after the output where that comes soon; opens the way for the output."""
    pid = check.integer(params, "pid")
    if (gate := connection.gates.get(pid)) is not None:
        gate.set()
    async with await connection.guest("processWait", {"pid": pid}) as call:
        status = await call.reply()
    if outputs := connection.outputs.get(pid):
        # A grandchild may hold the pipe open for long.
        _done, open_still = await asyncio.wait(outputs, timeout=TAIL)
        if pid in connection.killed and open_still:
            connection.beside(_end_quiet(connection, open_still))
    connection.killed.discard(pid)
    return status


async def _end_quiet(connection: Connection, outputs: set[asyncio.Task[None]]) -> None:
    """Whoever kills a shell means what it runs as well, and does not wait for the orphans: what the process itself has
    written arrives, however slowly it is taken, and whoever holds the pipe without a word is left alone with it.
    """
    while outputs:
        now = asyncio.get_running_loop().time()
        for output in outputs:
            if now - connection.quiet_since.get(output, now) >= TAIL:
                output.cancel()
        _done, outputs = await asyncio.wait(outputs, timeout=TAIL / 5)


async def process_kill(connection: Connection, params: dict[str, Any]) -> Any:
    """Send a signal."""
    pid = check.integer(params, "pid")
    if pid in connection.outputs and params.get("signal", "SIGTERM") in ENDING:
        connection.killed.add(pid)
    return await connection.ask("processKill", params)


METHODS: dict[str, Method] = {"spawn": spawn, "processWait": process_wait, "processKill": process_kill}
