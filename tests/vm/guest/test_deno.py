"""REPLs and servers of Deno, with the real one: the guest has the same."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.vm.guest.host import Host

DENO = str(Path(sys.executable).with_name("deno"))
GONE = ("TypeError", "ENOENT")


async def repl(host: Host) -> int:
    """A new REPL's pid."""
    return int((await host.ok("spawn", command=DENO, args=["repl", "--json", "-A"], control=True))["pid"])


async def value(host: Host, pid: int, code: str) -> Any:
    return json.loads(await host.ok("denoReplEval", pid=pid, code=code))


async def test_values_come_as_json_and_state_is_kept(host: Host) -> None:
    """TypeScript, top-level await, and what has no JSON is null."""
    pid = await repl(host)
    assert await value(host, pid, "const x: number = 5; x * 2") == 10
    assert await value(host, pid, "({ a: [x, 'é'], b: await Promise.resolve(null) })") == {"a": [5, "é"], "b": None}
    assert await value(host, pid, "function f(a: number) { return a + x }") is None
    assert await value(host, pid, "f(1)") == 6
    assert await value(host, pid, "undefined") is None
    assert await value(host, pid, "'text'") == "text"
    await host.ok("denoReplClose", pid=pid)
    assert (await host.ok("processWait", pid=pid))["code"] == 0
    assert await host.error("denoReplEval", pid=pid, code="1") == GONE
    assert await host.error("denoReplClose", pid=pid) == GONE


async def test_what_is_thrown_is_told(host: Host) -> None:
    """With its class, message and stack; also what cannot be parsed, is no error, or has no JSON: it goes on."""
    pid = await repl(host)

    async def error(code: str) -> dict[str, Any]:
        reply = await host.ask("denoReplEval", pid=pid, code=code)
        return dict(reply["error"])

    thrown = await error("throw new RangeError('too far')")
    assert (thrown["constructorName"], thrown["message"], thrown["name"]) == ("RangeError", "too far", "RangeError")
    assert "RangeError: too far" in thrown["stack"]
    assert (await error("missing"))["constructorName"] == "ReferenceError"
    assert (await error("this is not code"))["constructorName"] == "SyntaxError"
    assert await error("throw 'a text'") == {"constructorName": "Error", "message": "a text", "code": None} | {
        "name": None,
        "stack": None,
    }
    assert (await error("const round: any = {}; round.round = round; round"))["constructorName"] == "TypeError"
    assert (await error("await Deno.readTextFile('/nowhere')"))["constructorName"] == "NotFound"
    assert await value(host, pid, "1 + 1") == 2
    await host.ok("denoReplClose", pid=pid)


async def test_evaluations_take_turns_and_outlive_who_asked(host: Host) -> None:
    """Ten at once each get their own answer, also after one whose asker went away; a large one is whole."""
    pid = await repl(host)
    left = await host.open("denoReplEval", pid=pid, code="await new Promise(r => setTimeout(r, 300)); 'nobody'")
    await left.reset()
    assert await asyncio.gather(*(value(host, pid, f"{n} * 2") for n in range(10))) == [n * 2 for n in range(10)]
    assert len(await value(host, pid, "'x'.repeat(5_000_000)")) == 5_000_000
    too_long = await host.ask("denoReplEval", pid=pid, code="'x'.repeat(20_000_000)")
    assert too_long["error"]["constructorName"] == "RangeError"
    assert await value(host, pid, "'in step'") == "in step"
    await host.ok("denoReplClose", pid=pid)


@pytest.mark.parametrize("end", ["close", "kill"])
async def test_a_busy_repl_can_be_ended(host: Host, end: str) -> None:
    """One that calculates for ever is killed; whoever waits for a value is told that it is gone."""
    pid = await repl(host)
    assert await value(host, pid, "1") == 1
    waiting = asyncio.ensure_future(host.error("denoReplEval", pid=pid, code="while (true) {}"))
    await asyncio.sleep(0.3)
    began = time.monotonic()
    if end == "close":
        await host.ok("denoReplClose", pid=pid)
    else:
        await host.ok("processKill", pid=pid, signal="SIGKILL")
    assert await waiting == GONE
    assert time.monotonic() - began < 10
    assert (await host.ok("processWait", pid=pid))["signal"] == "SIGKILL"


async def test_only_a_repl_evaluates(host: Host) -> None:
    """A process without such a descriptor says so, and one that nobody knows is gone."""
    pid = (await host.ok("spawn", command="sleep", args=["60"]))["pid"]
    assert (await host.error("denoReplEval", pid=pid, code="1"))[0] == "BadResource"
    await host.ok("processKill", pid=pid)
    assert await host.error("denoReplEval", pid=4_000_000, code="1") == GONE


async def test_a_server_is_waited_for(host: Host) -> None:
    """True as soon as it listens, false where the process ends before."""
    serving = "setTimeout(() => Deno.serve({ port: 0, hostname: '127.0.0.1' }, () => new Response('x')), 500)"
    pid = (await host.ok("spawn", command=DENO, args=["eval", serving]))["pid"]
    assert await host.ok("denoHttpWait", pid=pid) is True
    await host.ok("processKill", pid=pid)
    pid = (await host.ok("spawn", command="sleep", args=["0.3"]))["pid"]
    assert await host.ok("denoHttpWait", pid=pid) is False
    assert await host.error("denoHttpWait", pid=4_000_000) == GONE
