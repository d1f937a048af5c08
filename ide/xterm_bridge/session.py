"""One page's connection to one terminal: moves bytes both ways, each bounded, until either side ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ide.xterm_bridge import messages
from ide.xterm_bridge.flow import FlowError, InputFlow, OutputFlow

PIECE = 65_536
MAX_REQUESTS = 64
NORMAL, POLICY, TRY_AGAIN, GONE = 1000, 1008, 1013, 4404


class TerminalError(Exception):
    """A host could not do what was asked; `retry` says whether asking again later can succeed."""

    def __init__(self, code: str, message: str, *, retry: bool) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry = retry


class ByteStream(Protocol):
    """A terminal's bytes: output to read, input to write. Failures are TerminalError."""

    async def read(self, limit: int) -> bytes:
        """Up to `limit` bytes of output; empty at the end of the terminal."""

    async def write(self, data: bytes) -> None:
        """Type `data`, waiting while the terminal takes no more."""

    async def abort(self) -> None:
        """Leave the terminal, which goes on. Repeatable; never raises."""


@dataclass(frozen=True, slots=True)
class Attached:
    """A terminal's stream and the place in its output where the stream starts."""

    id: str
    stream: ByteStream
    offset: int
    end: int
    truncated: bool


class TerminalHost(Protocol):
    """Whoever has terminals. Every call may raise TerminalError."""

    async def open(self, *, cols: int, rows: int, cwd: str | None) -> str:
        """Start a terminal; returns its id."""

    async def attach(self, terminal: str, *, offset: int | None, cols: int, rows: int) -> Attached:
        """Its output from `offset` on, or from the oldest byte kept."""

    async def resize(self, terminal: str, *, cols: int, rows: int) -> None:
        """Give it another size."""

    async def list(self) -> Sequence[Mapping[str, Any]]:
        """Each terminal as `{id, title, running, started, exit}`."""

    async def close(self, terminal: str) -> None:
        """End it."""


class Viewer(Protocol):
    """The page's end of the connection."""

    async def send_bytes(self, data: bytes) -> None:
        """One binary frame."""

    async def send_text(self, text: str) -> None:
        """One text frame."""

    async def close(self, code: int) -> None:
        """End the connection."""


class Session:
    """Feed it frames as they come (`text`, `data`: they never wait), and let `run` go on beside that until it returns.

    Cancel `run` when the page has gone. A page that breaks the protocol is closed with 1008.
    """

    def __init__(self, host: TerminalHost, viewer: Viewer) -> None:
        self._host = host
        self._viewer = viewer
        self._requests: deque[messages.FromPage] = deque()
        self._typed: deque[bytes] = deque()
        self._wake_requests = asyncio.Event()
        self._wake_input = asyncio.Event()
        self._wake_output = asyncio.Event()
        self._fault = asyncio.Event()
        self._fault_text = ""
        self._output: OutputFlow | None = None
        self._input = InputFlow()
        self._terminal: str | None = None
        self._asked = False

    def text(self, frame: str) -> None:
        """A text frame of the page."""
        try:
            message = messages.parse(frame)
            if isinstance(message, messages.Ack):
                if self._output is None:
                    raise FlowError("acknowledged before anything was sent")
                self._output.acknowledge(message.offset)
                self._wake_output.set()
                return
            if isinstance(message, messages.Open | messages.Attach):
                if self._asked:
                    raise messages.BadMessage("a connection carries one terminal")
                self._asked = True
            if isinstance(message, messages.Resize) and self._requests:
                # Only the last size of a drag matters.
                if isinstance(self._requests[-1], messages.Resize):
                    self._requests.pop()
            elif len(self._requests) >= MAX_REQUESTS:
                raise FlowError("too many requests at once")
            self._requests.append(message)
            self._wake_requests.set()
        except (messages.BadMessage, FlowError) as error:
            self._fail(str(error))

    def data(self, frame: bytes) -> None:
        """A binary frame of the page: typed bytes."""
        if not frame:
            return
        if not self._asked:
            self._fail("typed before there was a terminal")
            return
        try:
            self._input.receive(len(frame))
        except FlowError as error:
            self._fail(str(error))
            return
        self._typed.append(frame)
        self._wake_input.set()

    async def run(self) -> None:
        """Serve the connection to its end; closes the viewer. Failures reach the page as messages, never the caller."""
        watch = asyncio.ensure_future(self._fault.wait())
        serve = asyncio.ensure_future(self._serve())
        try:
            await asyncio.wait((watch, serve), return_when=asyncio.FIRST_COMPLETED)
            if self._fault.is_set():
                await self._viewer.send_text(messages.error(code="bad_message", message=self._fault_text, retry=False))
                await self._viewer.close(POLICY)
            else:
                serve.result()
        except TerminalError as error:
            await self._viewer.send_text(messages.error(code=error.code, message=error.message, retry=error.retry))
            await self._viewer.close(TRY_AGAIN if error.retry else GONE)
        finally:
            for task in (watch, serve):
                task.cancel()
            # The stream is given up inside _serve's own cleanup, which must have run before the viewer is forgotten.
            await asyncio.gather(watch, serve, return_exceptions=True)

    def _fail(self, why: str) -> None:
        self._fault_text = why
        self._fault.set()

    async def _serve(self) -> None:
        """Answer requests; the first that names a terminal starts the pumps."""
        pumps: asyncio.Future[None] | None = None
        try:
            while True:
                waiter = asyncio.ensure_future(self._wake_requests.wait())
                try:
                    await asyncio.wait(
                        (waiter,) if pumps is None else (waiter, pumps), return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    waiter.cancel()
                if pumps is not None and pumps.done():
                    pumps.result()
                    return
                self._wake_requests.clear()
                while self._requests:
                    message = self._requests.popleft()
                    if isinstance(message, messages.Open | messages.Attach):
                        attached = await self._attach(message)
                        self._terminal, self._output = attached.id, OutputFlow(attached.offset)
                        pumps = asyncio.ensure_future(self._pump(attached, self._output))
                    else:
                        await self._answer(message)
        finally:
            if pumps is not None:
                pumps.cancel()
                await asyncio.gather(pumps, return_exceptions=True)

    async def _attach(self, message: messages.Open | messages.Attach) -> Attached:
        offset: int | None = None
        if isinstance(message, messages.Open):
            terminal = await self._host.open(cols=message.cols, rows=message.rows, cwd=message.cwd)
        else:
            terminal, offset = message.id, message.offset
        return await self._host.attach(terminal, offset=offset, cols=message.cols, rows=message.rows)

    async def _answer(self, message: messages.FromPage) -> None:
        if isinstance(message, messages.Resize):
            if self._terminal is not None:
                # A terminal that ended meanwhile says so on its stream; its size is of no interest any more.
                with contextlib.suppress(TerminalError):
                    await self._host.resize(self._terminal, cols=message.cols, rows=message.rows)
        elif isinstance(message, messages.ListTerminals):
            await self._viewer.send_text(messages.terminals(await self._host.list()))
        elif isinstance(message, messages.Close):
            await self._host.close(message.id)
            await self._viewer.send_text(messages.closed(message.id))
        elif isinstance(message, messages.Ping):
            await self._viewer.send_text(messages.PONG)

    async def _pump(self, attached: Attached, flow: OutputFlow) -> None:
        """Both directions until the terminal ends or breaks off."""
        typing: asyncio.Future[None] | None = None
        try:
            await self._viewer.send_text(
                messages.attached(
                    terminal=attached.id, offset=attached.offset, end=attached.end, truncated=attached.truncated
                )
            )
            typing = asyncio.ensure_future(self._pump_input(attached.stream))
            await self._pump_output(attached.stream, flow)
            status = next((entry.get("exit") for entry in await self._host.list() if entry["id"] == attached.id), None)
            await self._viewer.send_text(messages.exited(status))
            await self._viewer.close(NORMAL)
        finally:
            if typing is not None:
                typing.cancel()
                await asyncio.gather(typing, return_exceptions=True)
            await attached.stream.abort()

    async def _pump_output(self, stream: ByteStream, flow: OutputFlow) -> None:
        while True:
            while not flow.open:
                self._wake_output.clear()
                await self._wake_output.wait()
            data = await stream.read(min(flow.room, PIECE))
            if not data:
                return
            flow.send(len(data))
            await self._viewer.send_bytes(data)

    async def _pump_input(self, stream: ByteStream) -> None:
        # A terminal whose stream takes no input any more is ended or broken: the reading side says which.
        with contextlib.suppress(TerminalError):
            while True:
                while not self._typed:
                    self._wake_input.clear()
                    await self._wake_input.wait()
                data = b"".join(self._typed)
                self._typed.clear()
                await stream.write(data)
                await self._viewer.send_text(messages.input_taken(self._input.write(len(data))))
