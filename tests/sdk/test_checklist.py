"""Lines of the protocol's checklist (its section 7) that no other test is about, message by message."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import websockets

from tests.sdk.conftest import Server
from tests.sdk.test_front_door import attach, call, create, identifier, state, until_stopped

pytestmark = pytest.mark.sdk
LIFE = 600_000  # milliseconds


class Peer:
    """A client that keeps every message that comes, and answers nothing by itself."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.heard: list[Any] = []
        self._next = 0

    async def notify(self, method: str, **params: Any) -> None:
        await self.socket.send(json.dumps({"jsonrpc": "2.0", "method": f"$sandbox.stream.{method}", "params": params}))

    async def ask(self, method: str, **params: Any) -> int:
        """Ask without waiting; the id of the request."""
        self._next += 1
        text = json.dumps({"jsonrpc": "2.0", "id": self._next, "method": method, "params": params})
        await self.socket.send(text)
        return self._next

    async def answer(self, number: int) -> Any:
        """The answer to that request."""
        return await self.until(lambda message: message.get("id") == number)

    async def call(self, method: str, **params: Any) -> Any:
        """What the call is answered with, where it goes well."""
        return (await self.answer(await self.ask(method, **params)))["result"]["ok"]

    async def stream(self, number: int) -> list[bytes]:
        """All chunks of a stream, to its end."""
        await self.until(
            lambda message: message.get("method") == "$sandbox.stream.end" and message["params"]["streamId"] == number
        )
        chunks = [message for message in self.heard if message.get("method") == "$sandbox.stream.enqueue"]
        return [base64.b64decode(chunk["params"]["data"]) for chunk in chunks if chunk["params"]["streamId"] == number]

    async def until(self, found: Any) -> Any:
        """The first message of which that is true."""
        async with asyncio.timeout(60):
            while True:
                for message in self.heard:
                    if found(message):
                        return message
                self.heard.append(json.loads(await self.socket.recv()))


@pytest.fixture
async def peer(fake_server: Server) -> AsyncIterator[Peer]:
    async with create(fake_server, stop_at_ms=int(time.time() * 1000) + LIFE) as socket:
        yield Peer(socket)


async def test_9_protocol_pings_are_answered(peer: Peer) -> None:
    """By a pong with the same bytes, also while a call is under way."""
    waiting = await peer.ask("spawn", command="sleep", args=["0.5"], stdout="null", stderr="null")
    pong = await peer.socket.ping(b"are you there")
    async with asyncio.timeout(10):
        await pong
    await peer.answer(waiting)


async def test_11_and_12_whoever_leaves_takes_nothing_along(fake_server: Server, peer: Peer) -> None:
    """A second socket ends nothing, and after the creator's own the files, processes and variables are still there."""
    made = identifier(peer.socket)
    async with attach(fake_server, made) as second:
        await call(second, 1, "writeTextFile", path="kept.txt", content="kept")
    assert await peer.call("readTextFile", path="kept.txt") == "kept"
    pid = (await peer.call("spawn", command="sleep", args=["600"], stdout="null", stderr="null"))["pid"]
    await peer.socket.close()
    await asyncio.sleep(0.5)
    assert state(fake_server, made)["state"] == "running"
    async with attach(fake_server, made) as socket:
        again = Peer(socket)
        assert await again.call("readTextFile", path="kept.txt") == "kept"
        assert await again.call("processKill", pid=pid, signal="SIGKILL") is None
        assert (await again.call("processWait", pid=pid))["signal"] == "SIGKILL"
    with fake_server.rest() as rest:
        assert rest.delete(f"/api/v3/sandbox/{made}").status_code == 204


async def test_11_a_second_socket_ends_no_session(fake_server: Server) -> None:
    async with create(fake_server) as socket:
        first, made = Peer(socket), identifier(socket)
        async with attach(fake_server, made) as second:
            assert (await call(second, 1, "envGet", key="x"))["result"] == {"ok": None}
        await asyncio.sleep(0.5)
        assert await first.call("envGet", key="x") is None
    assert (await until_stopped(fake_server, made))["stop_reason"] == "session_ended"


async def test_13_and_17_a_deadline_comes_with_clients_attached(fake_server: Server) -> None:
    """All of them are closed with 1001 and the reason, and the list has it as stopped, with the time."""
    async with create(fake_server, stop_at_ms=int(time.time() * 1000) + 3000) as socket:
        made = identifier(socket)
        async with attach(fake_server, made) as second:
            for one in (socket, second):
                with pytest.raises(websockets.ConnectionClosed) as closed:
                    await asyncio.wait_for(one.recv(), 30)
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1001
                assert "time" in closed.value.rcvd.reason, closed.value.rcvd.reason
    await until_stopped(fake_server, made)
    with fake_server.rest() as rest:
        (row,) = (row for row in rest.get("/api/v3/sandboxes").json() if row["id"] == made)
    assert row["status"] == "stopped"
    assert row["stoppedAt"] > row["createdAt"]


async def test_26_an_abort_is_answered_and_fails_the_call(peer: Peer) -> None:
    """With AbortError, which has no code; what was aborted holds up nothing."""
    pid = (await peer.call("spawn", command="sleep", args=["600"], stdout="null", stderr="null"))["pid"]
    waiting = await peer.ask("readFile", path="/dev/zero", abortId=0)
    assert await peer.call("abort", abortId=0) is None
    failed = (await peer.answer(waiting))["result"]["error"]
    assert failed["name"] == "AbortError"
    assert failed["code"] is None
    assert await peer.call("processKill", pid=pid, signal="SIGKILL") is None


async def test_28_chunks_are_neither_empty_nor_long(peer: Peer) -> None:
    """At most 64 KiB of output each; of a walk each is one JSON document."""
    script = "head -c 300000 /dev/zero; sleep 0.2; printf x"
    started = await peer.call("spawn", command="sh", args=["-c", script], stdout="piped", stderr="piped")
    chunks = await peer.stream(started["stdoutStreamId"])
    assert sum(map(len, chunks)) == 300_001
    assert all(0 < len(chunk) <= 65_536 for chunk in chunks)
    assert await peer.stream(started["stderrStreamId"]) == []
    await peer.call("mkdir", path="walked/below", options={"recursive": True})
    await peer.call("writeTextFile", path="walked/ünï.txt", content="")
    walked = await peer.stream((await peer.call("walk", path="walked"))["streamId"])
    names = {json.loads(chunk)["name"] for chunk in walked}
    assert names == {"walked", "below", "ünï.txt"}
    assert len(walked) == 3


@pytest.mark.parametrize("early", [True, False])
async def test_30_input_before_and_after_the_reply(peer: Peer, early: bool) -> None:
    """All of it reaches the process, and its end closes the process's input."""
    await peer.notify("start", streamId=0)
    if early:
        await peer.notify("enqueue", streamId=0, data=base64.b64encode(b"one\n").decode())
    started = await peer.call("spawn", command="cat", stdinStreamId=0, stdout="piped", stderr="null")
    if not early:
        await peer.notify("enqueue", streamId=0, data=base64.b64encode(b"one\n").decode())
    await peer.notify("enqueue", streamId=0, data=base64.b64encode(b"two\n").decode())
    await peer.notify("end", streamId=0)
    assert b"".join(await peer.stream(started["stdoutStreamId"])) == b"one\ntwo\n"
    assert (await peer.call("processWait", pid=started["pid"]))["code"] == 0


async def test_42_variables_are_everybodys(fake_server: Server, peer: Peer) -> None:
    """What one connection sets, later processes of all have; and what it deletes none."""

    async def found(client: Peer) -> bytes:
        started = await client.call("spawn", command="sh", args=["-c", "echo $LINE"], stdout="piped", stderr="null")
        return b"".join(await client.stream(started["stdoutStreamId"]))

    async with attach(fake_server, identifier(peer.socket)) as socket:
        other = Peer(socket)
        await peer.call("envSet", key="LINE", value="42")
        assert await other.call("envGet", key="LINE") == "42"
        assert (await other.call("envToObject"))["LINE"] == "42"
        assert await found(other) == b"42\n"
        await other.call("envDelete", key="LINE")
        assert await peer.call("envGet", key="LINE") is None
        assert await found(peer) == b"\n"


def test_54_an_empty_body_is_one(fake_server: Server) -> None:
    """Both SDKs say JSON with a DELETE that has no body; nothing is redirected, with a slash at the end or without."""
    with fake_server.rest() as rest:
        made = rest.post("/api/v2/volumes", json={"slug": "line-54", "region": "loc", "capacity": 10**9})
        assert made.status_code in (200, 201), made.text
        gone = rest.request(
            "DELETE", f"/api/v2/volumes/{made.json()['id']}", headers={"Content-Type": "application/json"}
        )
        assert gone.status_code in (200, 204), gone.text
        for path in ("/api/v2/volumes", "/api/v3/sandboxes", "/api/v2/apps"):
            assert rest.get(path).status_code == 200
            assert not rest.get(f"{path}/").is_redirect
