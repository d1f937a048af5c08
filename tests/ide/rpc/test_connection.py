"""One connection's calls against a real agent: concurrency, aborts, dialects, bounds, and its end."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ide.rpc import connection, methods
from ide.rpc.connection import Connection
from ide.rpc.envelope import Malformed
from ide.rpc.handshake import Dialect
from ide.rpc.methods import files, processes
from sandboxes import reconcile
from sandboxes.database import in_thread
from sandboxes.services import lifecycle
from tests import factories
from tests.factories import Team
from vm.api import StopReason
from vm.fake import FakeNode
from vm.guest.channel import MAX_OPEN, RESERVED


class Client:
    """The other end: sends requests, keeps what comes back."""

    def __init__(self) -> None:
        self.received: list[dict[str, Any]] = []
        self.arrived = asyncio.Event()
        self.paused: asyncio.Event | None = None
        self.connection: Connection
        self._next = 0

    async def take(self, text: str) -> None:
        if self.paused is not None:
            await self.paused.wait()
        self.received.append(json.loads(text) if text != "pong" else {"pong": True})
        self.arrived.set()

    async def until(self, wanted: Callable[[dict[str, Any]], bool], timeout: float = 10) -> dict[str, Any]:
        async with asyncio.timeout(timeout):
            while True:
                for message in self.received:
                    if wanted(message):
                        return message
                self.arrived.clear()
                await self.arrived.wait()

    async def begin(self, method: str, **params: Any) -> int:
        number, self._next = self._next, self._next + 1
        await self.connection.receive(json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}))
        return number

    async def answer(self, number: int, timeout: float = 10) -> dict[str, Any]:
        return await self.until(lambda message: message.get("id") == number, timeout)

    async def call(self, method: str, **params: Any) -> Any:
        return (await self.answer(await self.begin(method, **params))).get("result")

    async def notify(self, method: str, **params: Any) -> None:
        await self.connection.receive(
            json.dumps({"jsonrpc": "2.0", "method": f"$sandbox.stream.{method}", "params": params})
        )

    def stream(self, number: int) -> bytes:
        return b"".join(
            base64.b64decode(m["params"]["data"])
            for m in self.received
            if m.get("method") == "$sandbox.stream.enqueue" and m["params"]["streamId"] == number
        )

    def ended(self, number: int) -> Callable[[dict[str, Any]], bool]:
        return lambda m: m.get("method") == "$sandbox.stream.end" and m["params"]["streamId"] == number


@asynccontextmanager
async def connected(team: Team, dialect: Dialect = Dialect.JS, known: Any = methods.SDK) -> AsyncIterator[Client]:
    sandbox = await lifecycle.sandbox_boot(sandbox=await in_thread(factories.sandbox, team))
    client = Client()
    client.connection = Connection(sandbox=sandbox, actor=team.member, dialect=dialect, methods=known, send=client.take)
    try:
        yield client
    finally:
        await client.connection.release()
        await lifecycle.sandbox_stop(sandbox=sandbox, actor=team.member, beside=False)


async def test_ping(home: Team, node: FakeNode) -> None:
    """The bare text is answered in kind."""
    async with connected(home) as client:
        await client.connection.receive("ping")
        assert client.received == [{"pong": True}]


@pytest.mark.parametrize(
    ("text", "code"),
    [("{", 4000), ("[]", 4001), ('{"id":null,"method":"x"}', 4001), ('{"id":7,"method":5}', None)],
)
async def test_malformed_messages(home: Team, node: FakeNode, text: str, code: int | None) -> None:
    """What has an id is answered as an invalid request; anything else closes with the protocol's code."""
    async with connected(home) as client:
        if code is None:
            await client.connection.receive(text)
            assert client.received[-1]["error"]["code"] == -32600
        else:
            with pytest.raises(Malformed) as raised:
                await client.connection.receive(text)
            assert raised.value.close == code


async def test_unknown_and_internal_methods(home: Team, node: FakeNode) -> None:
    """Neither invented methods nor the agent's own are there."""
    async with connected(home) as client:
        for name in ("nothing", "identity", "shutdown", "watch", "terminal.open", "__class__"):
            answer = await client.answer(await client.begin(name))
            assert (answer["error"]["code"], answer["error"]["message"]) == (-32601, "Method not found")


async def test_invalid_params(home: Team, node: FakeNode) -> None:
    """A ZodError whose message is an array of issues with paths of strings; zero is a valid number."""
    async with connected(home) as client:
        answer = await client.answer(await client.begin("readTextFile"))
        data = answer["error"]["data"]
        assert (answer["error"]["code"], data["constructorName"]) == (-32602, "ZodError")
        issues = json.loads(data["message"])
        assert issues[0]["path"] == ["path"]
        assert issues[0]["expected"] == "string"
        assert await client.call("umask", mask=0) == {"ok": 0o022}
        answer = await client.answer(await client.begin("writeFile", path="x", content="not base64!"))
        assert answer["error"]["code"] == -32602


async def test_abort(home: Team, node: FakeNode) -> None:
    """An aborted call answers with the abort error, its sender is told, and abort itself is answered with null."""
    async with connected(home) as client:
        await client.notify("start", streamId=0)
        writing = await client.begin("writeFile", path="x", contentStreamId=0, abortId=0)
        await client.notify("enqueue", streamId=0, data="AAAA")
        await asyncio.sleep(0.3)
        assert await client.call("abort", abortId=0) == {"ok": None}
        error = (await client.answer(writing))["result"]["error"]
        assert (error["name"], error["code"]) == ("AbortError", None)
        await client.until(lambda m: m.get("method") == "$sandbox.stream.cancel")
        assert await client.call("abort", abortId=77) == {"ok": None}


async def test_end_of_file_per_dialect(home: Team, node: FakeNode) -> None:
    """null for JavaScript, an empty string for Python."""
    for dialect, end in ((Dialect.JS, None), (Dialect.PY, "")):
        async with connected(home, dialect) as client:
            handle = (await client.call("create", path="f"))["ok"]["fileHandleId"]
            assert await client.call("fileRead", fileHandleId=handle, length=10) == {"ok": {"data": end}}


async def test_output_waits_for_a_python_reader(home: Team, node: FakeNode) -> None:
    """Python hears nothing before it waits, and everything afterwards; JavaScript hears it at once."""
    async with connected(home, Dialect.PY) as client:
        ok = (await client.call("spawn", command="echo", args=["x"], stdout="piped", stderr="null"))["ok"]
        await asyncio.sleep(0.3)
        assert client.stream(ok["stdoutStreamId"]) == b""
        status = (await client.call("processWait", pid=ok["pid"]))["ok"]
        assert status == {"success": True, "code": 0, "signal": None, "oom": None}
        assert client.stream(ok["stdoutStreamId"]) == b"x\n"
    async with connected(home) as client:
        ok = (await client.call("spawn", command="echo", args=["x"], stdout="piped", stderr="null"))["ok"]
        await client.until(client.ended(ok["stdoutStreamId"]))
        assert client.stream(ok["stdoutStreamId"]) == b"x\n"
        assert ok["stderrStreamId"] is None


async def test_a_client_that_does_not_read_stops_the_process(home: Team, node: FakeNode) -> None:
    """Output nobody takes stays in the guest: a few hundred KiB wait here, whatever the process would write."""
    async with connected(home) as client:
        ok = (await client.call("spawn", command="yes", stdout="piped", stderr="null"))["ok"]
        client.paused = asyncio.Event()
        await asyncio.sleep(1)
        before = len(client.received)
        await asyncio.sleep(1)
        assert len(client.received) == before
        client.paused.set()
        client.paused = None
        assert await client.call("processKill", pid=ok["pid"], signal="SIGKILL") == {"ok": None}


async def test_a_stream_before_its_call_is_bounded(home: Team, node: FakeNode) -> None:
    """What comes for a stream no call has named is kept up to the bound, and the call then says so."""
    async with connected(home) as client:
        await client.notify("start", streamId=3)
        chunk = base64.b64encode(bytes(65_536)).decode()
        for _ in range(140):
            await client.notify("enqueue", streamId=3, data=chunk)
        result = await client.call("writeFile", path="x", contentStreamId=3)
        assert "before the call" in result["error"]["message"]


async def test_large_calls_wait_for_each_other(home: Team, node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a bound nothing is read until some are answered, or for a time: then one is refused; alone it is taken."""
    monkeypatch.setattr(connection, "HELD", 1000)
    monkeypatch.setattr(connection, "ROOM_SECONDS", 0.3)
    ended = asyncio.Event()

    async def hold(_connection: Connection, _params: dict[str, Any]) -> str:
        await ended.wait()
        return "done"

    async with connected(home, known={"hold": hold}) as client:
        first = await client.begin("hold", content="x" * 5000)
        refused = await client.begin("hold")
        assert "at a time" in (await client.answer(refused))["error"]["message"]
        second = asyncio.ensure_future(client.begin("hold"))
        await asyncio.sleep(0.05)
        assert not second.done()
        ended.set()
        assert (await client.answer(first))["result"] == {"ok": "done"}
        assert (await client.answer(await second))["result"] == {"ok": "done"}
        while client.connection._calls:
            await asyncio.sleep(0)
        assert client.connection._held == 0


async def test_a_stalled_consumer_holds_its_sender(home: Team, node: FakeNode) -> None:
    """A process that does not read its stdin makes the connection wait instead of keeping everything."""
    async with connected(home) as client:
        await client.notify("start", streamId=1)
        ok = (await client.call("spawn", command="sleep", args=["30"], stdinStreamId=1, stdout="null", stderr="null"))[
            "ok"
        ]
        chunk = base64.b64encode(bytes(65_536)).decode()
        sent = 0

        async def flood() -> None:
            nonlocal sent
            for _ in range(1000):
                await client.notify("enqueue", streamId=1, data=chunk)
                sent += 65_536

        flooding = asyncio.ensure_future(flood())
        await asyncio.sleep(2)
        assert sent < 12 * 2**20
        flooding.cancel()
        await client.call("processKill", pid=ok["pid"], signal="SIGKILL")


async def started(client: Client, script: str) -> tuple[int, int]:
    """Pid and output of a shell that has said `up`."""
    ok = (await client.call("spawn", command="sh", args=["-c", script], stdout="piped", stderr="null"))["ok"]
    async with asyncio.timeout(10):
        while not client.stream(ok["stdoutStreamId"]).startswith(b"up\n"):
            await asyncio.sleep(0.01)
    return ok["pid"], ok["stdoutStreamId"]


async def test_what_a_killed_process_wrote_arrives_however_late_it_is_taken(home: Team, node: FakeNode) -> None:
    """A client that takes nothing for a while has all of it afterwards."""
    async with connected(home) as client:
        last = "head -c 150000 /dev/zero; exit 3"
        pid, stream = await started(client, f"trap '{last}' TERM; echo up; while :; do sleep 0.05; done")
        client.paused = asyncio.Event()
        killed = await client.begin("processKill", pid=pid, signal="SIGTERM")
        waiting = await client.begin("processWait", pid=pid)
        await asyncio.sleep(2.5)
        client.paused.set()
        assert (await client.answer(waiting))["result"]["ok"]["code"] == 3
        await client.answer(killed)
        await client.until(client.ended(stream))
        assert len(client.stream(stream)) == len("up\n") + 150_000


@pytest.mark.parametrize(("signal", "late"), [("SIGUSR1", b"late\n"), ("SIGTERM", b"")])
async def test_who_holds_a_pipe_of_a_killed_process_is_left_alone_with_it(
    home: Team, node: FakeNode, signal: str, late: bytes
) -> None:
    """Nobody waits for the output of what a killed shell has left behind; a signal that is no kill changes nothing."""
    async with connected(home) as client:
        script = f"trap 'exit 0' {signal[3:]}; (sleep 2; echo late) & echo up; while :; do sleep 0.05; done"
        pid, stream = await started(client, script)
        await client.call("processKill", pid=pid, signal=signal)
        await client.call("processWait", pid=pid)
        await client.until(client.ended(stream))
        assert client.stream(stream) == b"up\n" + late


async def test_a_connection_has_no_more_processes_than_streams(
    home: Team, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However each is fed, read and waited for, all that one connection may have fit beside the node's own calls."""
    async with connected(home) as client:
        await client.call("create", path="f")  # from here on it has a session in the guest
        channel: Any = node._machines[client.connection.sandbox.machine].guest._channel
        before = len(channel._link._streams)
        await client.notify("start", streamId=1)
        process = {"command": "sleep", "args": ["30"], "stdout": "piped", "stderr": "piped"}
        pid = (await client.call("spawn", **process, stdinStreamId=1))["ok"]["pid"]
        waiting = await client.begin("processWait", pid=pid)
        async with asyncio.timeout(10):
            while len(channel._link._streams) < before + 4:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        taken = len(channel._link._streams) - before
        assert before + taken * processes.MAX_PROCESSES < MAX_OPEN - RESERVED
        monkeypatch.setattr(processes, "MAX_PROCESSES", 1)
        refused = await client.answer(await client.begin("spawn", **process))
        assert refused["error"]["message"] == "more than 1 processes are open on this connection"
        await client.call("processKill", pid=pid, signal="SIGKILL")
        await client.answer(waiting)


async def test_walk_per_dialect(home: Team, node: FakeNode) -> None:
    """One JSON document per chunk for JavaScript; an array for Python."""
    for dialect in Dialect:
        async with connected(home, dialect) as client:
            await client.call("writeTextFile", path="a", content="")
            ok = (await client.call("walk", path="."))["ok"]
            if dialect is Dialect.JS:
                await client.until(client.ended(ok["streamId"]))
                chunks = [
                    json.loads(base64.b64decode(m["params"]["data"]))
                    for m in client.received
                    if m.get("method") == "$sandbox.stream.enqueue"
                ]
            else:
                chunks = ok
            assert [entry["path"] for entry in chunks] == [".", "a"]


async def test_a_tree_too_large_for_the_python_client_is_given_up(
    home: Team, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as its entries are more than one message holds, not when all of them are in memory."""
    monkeypatch.setattr(files, "PY_MESSAGE", 4096)
    async with connected(home, Dialect.PY) as client:
        for number in range(60):
            await client.call("writeTextFile", path=f"{number:030}", content="")
        walked = await client.call("walk", path=".")
        assert walked["error"]["code"] == "EFBIG"
        assert 4096 < int(walked["error"]["message"].split()[3]) < 4096 + 200
        assert len((await client.call("expandGlob", glob="*5", root="."))["ok"]) == 6


async def test_finish_answers_everything(home: Team, node: FakeNode) -> None:
    """When the sandbox ends, Python's open calls are answered and its streams ended; its clean-up hears `gone`."""
    async with connected(home, Dialect.PY) as client:
        ok = (await client.call("spawn", command="sleep", args=["30"], stdout="piped", stderr="piped"))["ok"]
        waiting = await client.begin("processWait", pid=ok["pid"])
        await asyncio.sleep(0.2)
        await client.connection.finish("it was stopped")
        assert (await client.answer(waiting))["error"]["message"] == "WebSocket connection closed: it was stopped"
        await client.until(client.ended(ok["stdoutStreamId"]))
        await client.until(client.ended(ok["stderrStreamId"]))
        gone = (await client.call("processKill", pid=ok["pid"]))["error"]
        assert (gone["constructorName"], gone["code"]) == ("TypeError", "ENOENT")
        later = await client.answer(await client.begin("envGet", key="x"))
        assert later["error"]["code"] == 1


async def test_handles_end_with_their_connection(home: Team, node: FakeNode) -> None:
    """A lock is free again when the connection that held it is gone."""
    async with connected(home) as client:
        handle = (await client.call("create", path="locked"))["ok"]["fileHandleId"]
        await client.call("fileLock", fileHandleId=handle, exclusive=True)
        second = Client()
        second.connection = Connection(
            sandbox=client.connection.sandbox,
            actor=home.member,
            dialect=Dialect.JS,
            methods=methods.SDK,
            send=second.take,
        )
        other = (await second.call("open", path="locked"))["ok"]["fileHandleId"]
        waiting = await second.begin("fileLock", fileHandleId=other, exclusive=True)
        await asyncio.sleep(0.3)
        assert not any(m.get("id") == waiting for m in second.received)
        await client.connection.release()
        assert (await second.answer(waiting))["result"] == {"ok": None}
        await second.connection.release()


async def test_watch_for_pages(home: Team, node: FakeNode) -> None:
    """Our own pages hear of a changed file until they cancel."""
    async with connected(home, known=methods.BROWSER) as client:
        stream = (await client.call("watch", paths=["."]))["ok"]["streamId"]
        await asyncio.sleep(0.5)
        await client.call("writeTextFile", path="new.txt", content="x")
        await client.until(lambda m: b"new.txt" in client.stream(stream))
        await client.notify("cancel", streamId=stream, reason=None)
        assert "processes" in (await client.call("usage"))["ok"]


async def test_calls_fail_with_the_reason_when_the_guest_never_comes(home: Team, node: FakeNode) -> None:
    """A call that waits for a guest whose boot failed is answered with why."""
    node.boot_delay = 30
    sandbox = await in_thread(factories.sandbox, home)
    booting = asyncio.ensure_future(lifecycle.sandbox_boot(sandbox=sandbox))
    client = Client()
    client.connection = Connection(
        sandbox=sandbox, actor=home.member, dialect=Dialect.JS, methods=methods.SDK, send=client.take
    )
    waiting = await client.begin("envGet", key="x")
    await asyncio.sleep(0.3)
    node.fail_boot(sandbox.machine, detail="no kernel")
    assert "no kernel" in (await client.answer(waiting))["error"]["message"]
    await booting
    await client.connection.release()


@pytest.mark.parametrize("stream", [False, True], ids=["a call", "a process"])
async def test_a_full_disk_of_the_host_is_the_answer_to_what_it_broke(home: Team, node: FakeNode, stream: bool) -> None:
    """What was open when the machine stopped fails at once, and every call after it is told why."""
    async with connected(home) as client:
        if stream:
            process = (await client.call("spawn", command="sleep", args=["60"], stdout="piped", stderr="null"))["ok"]
            waiting = await client.begin("processWait", pid=process["pid"])
        else:
            await client.call("writeTextFile", path="locked", content="")
            first = (await client.call("open", path="locked", options={"write": True}))["ok"]["fileHandleId"]
            await client.call("fileLock", fileHandleId=first, exclusive=True)
            second = (await client.call("open", path="locked", options={"write": True}))["ok"]["fileHandleId"]
            waiting = await client.begin("fileLock", fileHandleId=second, exclusive=True)
        await asyncio.sleep(0.3)
        node.crash(client.connection.sandbox.machine, StopReason.DISK_FULL, "no room")
        await reconcile.reconcile()
        after = await client.answer(await client.begin("envGet", key="x"))
        assert after["error"]["message"] == "the sandbox is not running: the host's disk was full: no room"
        assert "error" in await client.answer(waiting)


async def test_what_was_open_at_a_crash_is_told_why_before_the_row_knows(home: Team, node: FakeNode) -> None:
    """The host knows of the end at once: nobody has to guess for the seconds until the row says it."""
    async with connected(home) as client:
        await client.call("writeTextFile", path="locked", content="")
        first = (await client.call("open", path="locked", options={"write": True}))["ok"]["fileHandleId"]
        await client.call("fileLock", fileHandleId=first, exclusive=True)
        second = (await client.call("open", path="locked", options={"write": True}))["ok"]["fileHandleId"]
        waiting = await client.begin("fileLock", fileHandleId=second, exclusive=True)
        await asyncio.sleep(0.3)
        node.crash(client.connection.sandbox.machine, StopReason.GUEST_CRASHED, "panic")
        for number in (waiting, await client.begin("envGet", key="x")):
            said = (await client.answer(number))["error"]["message"]
            assert said == "the sandbox is not running: the machine's kernel crashed: panic"
