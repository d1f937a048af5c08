"""A process in a sandbox, joined to streams of ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

from .rpc import CHUNK, Guest, GuestError, Sink

INPUT = CHUNK * 4
KILL_SECONDS = 3


async def run(
    guest: Guest,
    command: str,
    *args: str,
    given: AsyncIterator[bytes] | None,
    out: Sink,
    err: Sink,
    cwd: str | None = None,
    env: dict[str, str] | None = None,
    started: asyncio.Future[int] | None = None,
) -> dict[str, Any]:
    """Its exit status (`code`, `signal`, `oom`), once all its output was handed on.

    `given` is its input, which may go on for longer than the process; without, it reads the end at once. `started` is
    told its number. GuestError if there is no such command; whatever a sink or `given` raises ends the process.
    """
    stream = await guest.stream_begin() if given is not None else None
    made = await guest.call(
        "spawn",
        command=command,
        args=list(args),
        cwd=cwd,
        env=env,
        stdinStreamId=stream,
        stdout="piped",
        stderr="piped",
    )
    if started is not None:
        started.set_result(made["pid"])
    tasks: set[asyncio.Future[Any]] = set()
    if given is not None and stream is not None:
        tasks.add(asyncio.ensure_future(_feed(guest, stream, given)))
    try:
        ends = [await guest.expect(made["stdoutStreamId"], out), await guest.expect(made["stderrStreamId"], err)]
        ending = asyncio.gather(guest.call("processWait", pid=made["pid"]), *ends)
        tasks.add(ending)
        while not ending.done():
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {ending}:
                task.result()
                tasks.discard(task)
        return dict(ending.result()[0])
    except BaseException:
        with contextlib.suppress(Exception):
            async with asyncio.timeout(KILL_SECONDS):
                await guest.call("processKill", pid=made["pid"], signal="SIGKILL")
        raise
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _feed(guest: Guest, stream: int, given: AsyncIterator[bytes]) -> None:
    async for data in given:
        if stream in guest.cancelled:
            return
        await guest.stream_send(stream, data)
    await guest.stream_end(stream)


async def kill(guest: Guest, pid: int, signal: str) -> None:
    """Send it a signal; nothing if it has ended."""
    with contextlib.suppress(GuestError):
        await guest.call("processKill", pid=pid, signal=signal)


async def descriptor_read(descriptor: int) -> AsyncIterator[bytes]:
    """What can be read there, as it comes, until the end; for files, pipes and terminals alike."""
    loop = asyncio.get_running_loop()
    while True:
        await _readable(loop, descriptor)
        # A file that is read from a slow disk must not hold up the connection
        data = await asyncio.to_thread(os.read, descriptor, INPUT)
        if not data:
            return
        yield data


async def _readable(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    """Until a read would not wait: a thread that waits could not be ended with the command."""
    ready = asyncio.Event()
    try:
        loop.add_reader(descriptor, ready.set)
    except PermissionError:
        return  # a regular file: epoll takes none, and none waits
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


def descriptor_sink(descriptor: int) -> Sink:
    """Writes there, whole; BrokenPipeError once nobody reads."""

    async def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[await asyncio.to_thread(os.write, descriptor, view) :]

    return write
