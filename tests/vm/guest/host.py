"""A small host side for tests: opens calls on an agent that runs as a real process of this host."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from vm.guest.frames import (
    MAX_PAYLOAD,
    Data,
    EchoScanner,
    Ended,
    Event,
    Inbox,
    Multiplexer,
    Reset,
    preamble,
)


class WasReset(Exception):
    """The agent gave the stream up; the text is its reason."""


class Conversation:
    """One call: its input, its records and its output."""

    def __init__(self, host: Host, number: int) -> None:
        self._host = host
        self.number = number
        self._inbox = Inbox()
        self._ended = False
        self._reset: str | None = None
        self._news = asyncio.Event()

    def tell(self, event: Event) -> None:
        if isinstance(event, Data):
            self._inbox.put(event.data)
        elif isinstance(event, Ended):
            self._ended = True
        elif isinstance(event, Reset):
            self._reset = event.reason
        self._news.set()

    async def read(self, limit: int = 1 << 20) -> bytes:
        while True:
            self._news.clear()
            if data := self._inbox.take(limit):
                await self._host.write(self._host.mux.consumed(self.number, len(data)))
                return data
            if self._reset is not None:
                raise WasReset(self._reset)
            if self._ended:
                return b""
            await self._news.wait()

    async def read_to_end(self) -> bytes:
        pieces = []
        while piece := await self.read():
            pieces.append(piece)
        return b"".join(pieces)

    async def read_exactly(self, count: int) -> bytes:
        pieces = b""
        while len(pieces) < count:
            piece = await self.read(count - len(pieces))
            if not piece:
                raise EOFError(pieces)
            pieces += piece
        return pieces

    async def read_until(self, wanted: bytes) -> bytes:
        seen = b""
        while wanted not in seen:
            piece = await self.read()
            if not piece:
                raise EOFError(seen)
            seen += piece
        return seen

    async def record(self) -> Any:
        return json.loads(await self.read_exactly(int.from_bytes(await self.read_exactly(4), "big")))

    async def records(self) -> AsyncIterator[Any]:
        while True:
            try:
                yield await self.record()
            except EOFError:
                return

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._news.clear()
            if self._reset is not None:
                raise WasReset(self._reset)
            room = self._host.mux.room(self.number)
            if not room:
                await self._news.wait()
                continue
            piece = view[: min(room, MAX_PAYLOAD)]
            await self._host.write(self._host.mux.data(self.number, piece))
            view = view[len(piece) :]

    async def end(self) -> None:
        await self._host.write(self._host.mux.end(self.number))

    async def reset(self) -> None:
        await self._host.write(self._host.mux.reset(self.number, "test"))


class Host:
    """The host side of one link; `linked` has to be awaited first."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self.mux = Multiplexer(host=True)
        self._conversations: dict[int, Conversation] = {}
        self._receiving: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    async def linked(self) -> Host:
        nonce = secrets.token_bytes(16)
        scanner = EchoScanner(nonce)
        # Beside the reading: the agent may be sending what nobody has taken from its last link
        sending = self._loop.create_task(self._loop.sock_sendall(self._connection, preamble(nonce)))
        rest = None
        while rest is None:
            rest = scanner.feed(await self._loop.sock_recv(self._connection, 1 << 18))
        await sending
        self._tell(self.mux.receive(rest))
        self._receiving = self._loop.create_task(self._receive())
        return self

    async def _receive(self) -> None:
        while data := await self._loop.sock_recv(self._connection, 1 << 18):
            self._tell(self.mux.receive(data))

    def _tell(self, events: list[Event]) -> None:
        for event in events:
            assert not isinstance(event, int)
            conversation = self._conversations.get(event.stream)  # type: ignore[union-attr]
            if conversation is not None:
                conversation.tell(event)

    async def write(self, data: bytes) -> None:
        if data:
            async with self._turn:
                await self._loop.sock_sendall(self._connection, data)

    async def open(self, method: str, session: str | None = None, /, **params: Any) -> Conversation:
        """Send a request; what follows is the test's."""
        return await self.send(json.dumps({"method": method, "params": params, "session": session}).encode())

    async def send(self, request: bytes) -> Conversation:
        number, frame = self.mux.open()
        conversation = self._conversations[number] = Conversation(self, number)
        await self.write(frame)
        await conversation.write(len(request).to_bytes(4, "big") + request)
        return conversation

    async def ask(self, method: str, session: str | None = None, /, data: bytes = b"", **params: Any) -> Any:
        """The whole reply of a call without output."""
        conversation = await self.open(method, session, **params)
        await conversation.write(data)
        await conversation.end()
        reply = await conversation.record()
        assert await conversation.read_to_end() == b""
        return reply

    async def ok(self, method: str, session: str | None = None, /, data: bytes = b"", **params: Any) -> Any:
        """The value of a call that has to succeed."""
        reply = await self.ask(method, session, data=data, **params)
        assert "ok" in reply, reply
        return reply["ok"]

    async def error(
        self, method: str, session: str | None = None, /, data: bytes = b"", **params: Any
    ) -> tuple[str, str | None]:
        """Class and code of a call that has to fail."""
        reply = await self.ask(method, session, data=data, **params)
        assert "error" in reply, reply
        return reply["error"]["constructorName"], reply["error"]["code"]

    async def read_file(self, path: str) -> bytes:
        conversation = await self.open("readFile", path=path)
        await conversation.end()
        assert "ok" in await conversation.record()
        return await conversation.read_to_end()

    async def run(self, command: str, *args: str, **params: Any) -> tuple[dict[str, Any], bytes]:
        """Exit status and standard output of a process."""
        pid = (await self.ok("spawn", command=command, args=list(args), stdout="piped", **params))["pid"]
        output = await self.open("process.stdout", pid=pid)
        assert await output.record() == {"ok": None}
        said = await output.read_to_end()
        return await self.ok("processWait", pid=pid), said

    async def close(self) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
            await asyncio.wait([self._receiving])


def children(pid: int) -> list[int]:
    """The child processes of a process with one thread that forks."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
