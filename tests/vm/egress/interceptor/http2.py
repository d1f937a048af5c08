"""HTTP/2 on both ends, by hand: a client and a server that do exactly what a test wants."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from tests.vm.egress.interceptor.scene import API, Scene

type Fields = Sequence[tuple[str, str]]


@dataclass(slots=True)
class Message:
    """A request or an answer that is complete."""

    fields: dict[str, str]
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    reset: bool = False
    done: asyncio.Event = field(default_factory=asyncio.Event)


class End:
    """One end of a connection; `answer` makes a server's answer: fields, pieces, trailers."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answer: Callable[[Message], tuple[Fields, Sequence[bytes], Fields]] | None = None,
        *,
        acknowledge: bool = True,
    ) -> None:
        self._reader, self._writer, self._answer = reader, writer, answer
        self._acknowledge = acknowledge
        config = h2.config.H2Configuration(
            client_side=answer is None, header_encoding="utf-8", validate_outbound_headers=False
        )
        self.h2 = h2.connection.H2Connection(config)
        self.messages: dict[int, Message] = {}
        self.received = 0
        self.h2.initiate_connection()

    async def run(self) -> None:
        await self.flush()
        with suppress(OSError, ssl.SSLError, h2.exceptions.ProtocolError):
            while data := await self._reader.read(65_536):
                for event in self.h2.receive_data(data):
                    await self._happened(event)
                await self.flush()
        for message in self.messages.values():
            message.done.set()

    async def flush(self) -> None:
        self._writer.write(self.h2.data_to_send())
        await self._writer.drain()

    async def _happened(self, event: Any) -> None:
        if isinstance(event, h2.events.RequestReceived | h2.events.ResponseReceived):
            self.messages[event.stream_id] = Message(_fields(event.headers))
        elif isinstance(event, h2.events.DataReceived):
            self.received += len(event.data)
            self.messages[event.stream_id].body += event.data
            if self._acknowledge:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.TrailersReceived):
            self.messages[event.stream_id].trailers = _fields(event.headers)
        elif isinstance(event, h2.events.StreamReset):
            message = self.messages.setdefault(event.stream_id, Message({}))
            message.reset = True
            message.done.set()
        elif isinstance(event, h2.events.StreamEnded):
            message = self.messages[event.stream_id]
            message.done.set()
            if self._answer is not None:
                await self._reply(event.stream_id, *self._answer(message))

    async def _reply(self, stream: int, fields: Fields, pieces: Sequence[bytes], trailers: Fields) -> None:
        self.h2.send_headers(stream, fields, end_stream=not pieces and not trailers)
        if not pieces and not trailers:
            return
        for piece in pieces:
            self.h2.send_data(stream, piece)
            await self.flush()
            await asyncio.sleep(0.03)
        if trailers:
            self.h2.send_headers(stream, trailers, end_stream=True)
        else:
            self.h2.end_stream(stream)

    async def ask(
        self,
        *extra: tuple[str, str],
        authority: str = API,
        path: str = "/",
        body: bytes = b"",
        method: str = "",
        trailers: Fields = (),
    ) -> Message:
        stream = self.h2.get_next_available_stream_id()
        method = method or ("POST" if body else "GET")
        head = [(":method", method), (":scheme", "https"), (":authority", authority), (":path", path), *extra]
        self.h2.send_headers(stream, head, end_stream=not body)
        self.messages[stream] = Message({})
        for place in range(0, len(body), 16_384):
            last = place + 16_384 >= len(body)
            self.h2.send_data(stream, body[place : place + 16_384], end_stream=last and not trailers)
        if trailers:
            self.h2.send_headers(stream, trailers, end_stream=True)
        await self.flush()
        async with asyncio.timeout(15):
            while not (message := self.messages[stream]).done.is_set():
                await asyncio.sleep(0.01)
        return message


def _fields(headers: Any) -> dict[str, str]:
    return {str(name): str(value) for name, value in headers}


@asynccontextmanager
async def serving(
    scene: Scene, answer: Callable[[Message], tuple[Fields, Sequence[bytes], Fields]], *names: str
) -> AsyncIterator[tuple[int, list[Message]]]:
    """A server; its port, and what it gets."""
    got: list[Message] = []

    def noting(message: Message) -> tuple[Fields, Sequence[bytes], Fields]:
        got.append(message)
        return answer(message)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await End(reader, writer, noting).run()
        writer.close()

    context = scene.authority.context(*(names or (API,)), alpn=("h2",))
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], got
    finally:
        server.close()
        # It waits for all of its connections, and whether one ends is not what is tested
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                await server.wait_closed()


@asynccontextmanager
async def client(scene: Scene, port: int, *, acknowledge: bool = True) -> AsyncIterator[End]:
    """A guest's connection."""
    async with scene.talking(API, port, alpn=("h2",)) as (reader, writer):
        end = End(reader, writer, acknowledge=acknowledge)
        running = asyncio.ensure_future(end.run())
        try:
            yield end
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
