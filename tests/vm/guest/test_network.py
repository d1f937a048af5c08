from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.vm.guest.host import Conversation, Host, WasReset
from vm.guest.agent import network

BLOCK = os.urandom(1 << 20)


@asynccontextmanager
async def server(serve: object, *, path: str | None = None) -> AsyncIterator[int]:
    """A server on this host, which is the agent's machine here; its port."""
    if path is None:
        running = await asyncio.start_server(serve, "127.0.0.1", 0)  # type: ignore[arg-type]
        port = running.sockets[0].getsockname()[1]
    else:
        running, port = await asyncio.start_unix_server(serve, path), 0  # type: ignore[arg-type]
    async with running:
        yield port


async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers in capitals once it has heard everything: needs both directions to end one by one."""
    writer.write((await reader.read()).upper())
    writer.close()


async def dial(link: Host, /, **target: object) -> Conversation:
    call = await link.open("dial", **target)
    assert await call.record() == {"ok": None}
    return call


async def answers(link: Host, pid: int) -> bool:
    """Whether something listens that is the process's."""
    call = await link.open("dial", pid=pid)
    reply = await call.record()
    await call.reset()
    return "ok" in reply


@pytest.mark.parametrize("target", [{}, {"host": "127.0.0.1"}, {"host": "localhost"}])
async def test_dial_a_port(host: Host, target: dict[str, object]) -> None:
    """Bytes go both ways, and the end of one direction is the end of that direction only."""
    async with server(upper) as port:
        call = await dial(host, port=port, **target)
        await call.write(b"hello")
        await call.end()

        assert await call.read_to_end() == b"HELLO"


async def test_dial_a_unix_socket(host: Host, home: Path) -> None:
    """A relative path is one of the home directory."""
    async with server(upper, path=str(home / "s")):
        call = await dial(host, path=f"{home.name}/s")
        await call.write(b"hello")
        await call.end()

        assert await call.read_to_end() == b"HELLO"


async def test_nobody_answers(host: Host, home: Path) -> None:
    """The system's own error says why there is no connection."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert await host.error("dial", port=unused.getsockname()[1]) == ("ConnectionRefused", "ECONNREFUSED")
    assert await host.error("dial", path=str(home / "none")) == ("NotFound", "ENOENT")
    assert await host.error("dial", port=70_000) == ("TypeError", "EINVAL")
    assert (await host.error("dial", host="no.such.name.invalid", port=1))[1] == "ENOTFOUND"
    idle = (await host.ok("spawn", command="sleep", args=["60"]))["pid"]
    assert await host.error("dial", pid=idle) == ("ConnectionRefused", "ECONNREFUSED")
    await host.ok("processKill", pid=idle)


async def test_dial_what_a_process_listens_on(host: Host) -> None:
    """By pid, whichever port it took, also where a child of it has it; and `port.list` names it."""
    script = (
        "import socket\ns = socket.create_server(('127.0.0.1', 0))\n"
        "while True:\n c, _ = s.accept()\n c.sendall(b'from a child')\n c.close()"
    )
    pid = (await host.ok("spawn", command="sh", args=["-c", f'python3 -c "{script}"; true']))["pid"]
    try:
        async with asyncio.timeout(20):
            while not await answers(host, pid):
                await asyncio.sleep(0.05)
        assert await (await dial(host, pid=pid)).read_to_end() == b"from a child"
        assert any(one["command"] == "python3" and one["address"] == "127.0.0.1" for one in await host.ok("port.list"))
    finally:
        await host.ok("processKill", pid=pid, signal="SIGKILL", group=True)
    assert (await host.ok("processWait", pid=pid))["signal"] == "SIGKILL"
    async with asyncio.timeout(10):
        while await answers(host, pid):
            await asyncio.sleep(0.05)


async def test_a_peer_that_breaks_off(host: Host) -> None:
    """A reset of the peer's is a reset of the stream: nobody takes what came for the whole."""

    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"half")
        await reader.readexactly(1)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async with server(rude) as port:
        call = await dial(host, port=port)
        assert await call.read() == b"half"
        await call.write(b"xy")
        with pytest.raises(WasReset):
            await call.read_to_end()


async def test_much_both_ways_at_a_time(host: Host) -> None:
    """An echo of 8 MiB that is read while it is sent arrives whole."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def send(call: Conversation) -> None:
        for _ in range(8):
            await call.write(BLOCK)
        await call.end()

    async with server(echo) as port:
        call = await dial(host, port=port)
        _, back = await asyncio.gather(send(call), call.read_to_end())

    assert back == BLOCK * 8


async def test_a_reader_that_stops(host: Host) -> None:
    """What nobody reads stops the server after a bounded amount, and not the other calls."""
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while True:
            writer.write(BLOCK[:65_536])
            await writer.drain()
            sent += 65_536

    async with server(flood) as port:
        call = await dial(host, port=port)
        await asyncio.sleep(0.3)
        await host.ok("ping")
        before = sent
        await asyncio.sleep(0.3)
        assert sent == before < 32 << 20  # the sockets' own buffers, and a window
        await call.reset()


async def test_listen_and_accept(host: Host) -> None:
    """Each connection is told of, and is a call of its own; the port is free again when the call ends."""
    listening = await host.open("listen", port=0)
    told = (await listening.record())["ok"]
    replies = []
    for word in (b"one", b"two"):
        reader, writer = await asyncio.open_connection("127.0.0.1", told["port"])
        news = await listening.record()
        assert news["peer"] == list(writer.get_extra_info("sockname"))
        taken = await host.open("accept", listener=told["listener"], connection=news["connection"])
        assert await taken.record() == {"ok": None}
        await taken.write(word)
        await taken.end()
        replies.append(await reader.read())
        writer.close()
        assert (await host.error("accept", listener=told["listener"], connection=news["connection"]))[1] == "EBADF"

    assert replies == [b"one", b"two"]
    await listening.end()
    assert await listening.read_to_end() == b""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", told["port"])


async def test_listen_on_a_unix_socket(host: Host, home: Path) -> None:
    """It is its owner's alone, goes with its call, and takes nobody else's place."""
    place = home / "s"
    listening = await host.open("listen", path=str(place))
    assert (await listening.record())["ok"]["port"] is None
    assert place.stat().st_mode & 0o777 == 0o600
    assert await host.error("listen", path=str(place)) == ("AddrInUse", "EADDRINUSE")

    await listening.reset()

    async with asyncio.timeout(5):
        while place.exists():
            await asyncio.sleep(0.01)


async def test_connections_that_nobody_takes(host: Host) -> None:
    """Of a listener that is flooded a bounded number is held, and told of."""
    listening = await host.open("listen", port=0)
    told = (await listening.record())["ok"]
    writers = [(await asyncio.open_connection("127.0.0.1", told["port"]))[1] for _ in range(network.WAITING + 20)]
    for _ in range(network.WAITING):
        await listening.record()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(listening.record(), 0.2)
    for writer in writers:
        writer.close()
