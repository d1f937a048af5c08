from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from tests.vm.guest.conftest import RunningAgent
from tests.vm.guest.host import Host, children
from vm.background import spawn
from vm.guest.agent.spawner import IGNORED_BY_AGENT

SUCCESS = {"success": True, "code": 0, "signal": None, "oom": None}


async def test_exit_status_and_output(host: Host) -> None:
    """A process's output arrives whole, and its status has all four keys."""
    assert await host.run("sh", "-c", "echo out") == (SUCCESS, b"out\n")


@pytest.mark.parametrize(
    ("script", "code", "name"), [("exit 3", 3, None), ("kill -TERM $$", 143, "SIGTERM"), ("kill -9 $$", 137, "SIGKILL")]
)
async def test_exit_codes(host: Host, script: str, code: int, name: str | None) -> None:
    """An exit code is told as it is; a signal as 128 and its number, with its name."""
    status, _ = await host.run("sh", "-c", script)

    assert (status["success"], status["code"], status["signal"]) == (False, code, name)


async def test_wait_answers_again_and_again(host: Host) -> None:
    """Everybody who asks is told, before the end and after."""
    pid = (await host.ok("spawn", command="sleep", args=["0.1"]))["pid"]

    answers = await asyncio.gather(*(host.ok("processWait", pid=pid) for _ in range(3)))

    assert answers == [SUCCESS] * 3
    assert await host.ok("processWait", pid=pid) == SUCCESS


async def test_unknown_process_is_gone(host: Host) -> None:
    """A pid that is nobody's is answered with the pair that the SDKs look for."""
    assert await host.error("processWait", pid=4_000_000) == ("TypeError", "ENOENT")
    assert await host.error("processKill", pid=1) == ("TypeError", "ENOENT")


async def test_kill_of_a_finished_process(host: Host) -> None:
    """A process that has ended is gone, not killed."""
    pid = (await host.ok("spawn", command="true"))["pid"]
    await host.ok("processWait", pid=pid)

    assert await host.error("processKill", pid=pid) == ("TypeError", "ENOENT")


async def test_kill_sends_the_signal(host: Host) -> None:
    """The default is SIGTERM; another is sent by name, and a wrong name is refused."""
    pid = (await host.ok("spawn", command="sleep", args=["60"]))["pid"]
    assert (await host.error("processKill", pid=pid, signal="SIGNONE"))[0] == "TypeError"
    await host.ok("processKill", pid=pid)
    assert (await host.ok("processWait", pid=pid))["signal"] == "SIGTERM"

    pid = (await host.ok("spawn", command="sleep", args=["60"]))["pid"]
    await host.ok("processKill", pid=pid, signal="SIGINT")
    assert (await host.ok("processWait", pid=pid))["signal"] == "SIGINT"


async def test_signals_have_their_defaults(host: Host) -> None:
    """What the agent ignores, its processes do not: a pipeline ends by SIGPIPE."""
    _, out = await host.run("sh", "-c", "yes | head -1; sed -n 's/^Sig[BI][lg][kn]:\t//p' /proc/self/status")

    first, blocked, ignored = out.split()
    assert first == b"y"
    assert int(blocked, 16) == 0
    # Whoever runs the suite may ignore others (nohup, a shell's background job), which are inherited
    assert int(ignored, 16) & sum(1 << (number - 1) for number in IGNORED_BY_AGENT) == 0


async def test_missing_command(host: Host) -> None:
    """A command that does not exist is NotFound, whether a name or a path."""
    assert await host.error("spawn", command="no-such-command") == ("NotFound", "ENOENT")
    assert await host.error("spawn", command="/no/such/command") == ("NotFound", "ENOENT")
    assert await host.error("spawn", command="") == ("NotFound", "ENOENT")


async def test_missing_working_directory(host: Host) -> None:
    """A working directory that does not exist is NotFound and named."""
    reply = await host.ask("spawn", command="true", cwd="no-such-folder")

    assert (reply["error"]["constructorName"], reply["error"]["code"]) == ("NotFound", "ENOENT")
    assert "no-such-folder" in reply["error"]["message"]


async def test_command_that_may_not_be_run(host: Host, home: Path) -> None:
    """A file without the right to execute is PermissionDenied."""
    (home / "a").write_text("true")

    assert await host.error("spawn", command=str(home / "a")) == ("PermissionDenied", "EACCES")


async def test_script_without_interpreter_is_the_shells(host: Host, home: Path) -> None:
    """An executable text without #! runs in sh."""
    (home / "a").write_text('echo "$0 $1"')
    (home / "a").chmod(0o755)

    assert (await host.run("./a", "x", cwd=str(home)))[1].endswith(b"a x\n")


async def test_working_directory(host: Host, agent: object, home: Path) -> None:
    """It is the home directory by default, and may be relative to it."""
    assert (await host.run("pwd"))[1].decode().strip() == os.path.realpath(agent.home)  # type: ignore[attr-defined]
    assert (await host.run("pwd", cwd=home.name))[1].decode().strip() == str(home.resolve())


async def test_environment_of_a_process(host: Host) -> None:
    """It has the sandbox's variables and its own, which win; clearEnv leaves only its own."""
    await host.ok("envSet", key="SHARED", value="1")
    await host.ok("envSet", key="BOTH", value="1")

    _, everything = await host.run("env", env={"BOTH": "2", "OWN": "ü"})
    _, only = await host.run("env", env={"OWN": "3"}, clearEnv=True)

    assert {b"SHARED=1", b"BOTH=2", "OWN=ü".encode()} <= set(everything.split(b"\n"))
    assert b"SHARED" not in only
    assert b"OWN=3" in only


async def test_environment_calls(host: Host) -> None:
    """Variables are set, told, listed and deleted."""
    await host.ok("envSet", key="A_KEY", value="")
    assert await host.ok("envGet", key="A_KEY") == ""
    assert (await host.ok("envToObject"))["A_KEY"] == ""
    await host.ok("envDelete", key="A_KEY")
    await host.ok("envDelete", key="A_KEY")

    assert await host.ok("envGet", key="A_KEY") is None
    assert "HOME" in await host.ok("envToObject")
    assert (await host.error("envSet", key="A=B", value=""))[0] == "TypeError"


async def test_null_pipes(host: Host) -> None:
    """Without pipes the input is empty and the output goes nowhere."""
    pid = (await host.ok("spawn", command="sh", args=["-c", "read x; echo $?; exit 4"]))["pid"]

    assert (await host.ok("processWait", pid=pid))["code"] == 4
    assert (await host.error("process.stdout", pid=pid))[0] == "BadResource"


async def test_wrong_kind_of_pipe(host: Host) -> None:
    """A pipe is piped or null and nothing else."""
    assert (await host.error("spawn", command="true", stdout="inherit"))[0] == "TypeError"


async def test_output_outlives_the_process(host: Host) -> None:
    """What a process said is kept for readers after its exit, both streams apart."""
    script = "echo out; echo err >&2"
    pid = (await host.ok("spawn", command="sh", args=["-c", script], stdout="piped", stderr="piped"))["pid"]
    await host.ok("processWait", pid=pid)

    for name, wanted in (("process.stderr", b"err\n"), ("process.stdout", b"out\n")):
        call = await host.open(name, pid=pid)
        assert await call.record() == {"ok": None}
        assert await call.read_to_end() == wanted
    assert (await host.error("process.stdout", pid=pid))[0] == "BadResource"


async def test_one_reader_at_a_time(host: Host) -> None:
    """A second reader is told Busy; after the first has gone another may read on."""
    pid = (await host.ok("spawn", command="sh", args=["-c", "echo a; exec sleep 60"], stdout="piped"))["pid"]
    first = await host.open("process.stdout", pid=pid)
    assert await first.record() == {"ok": None}
    assert await first.read() == b"a\n"

    assert await host.error("process.stdout", pid=pid) == ("Busy", "EBUSY")
    await first.reset()
    await host.ok("ping")
    second = await host.open("process.stdout", pid=pid)

    assert await second.record() == {"ok": None}
    await host.ok("processKill", pid=pid, signal="SIGKILL")
    assert await second.read_to_end() == b""


async def test_nobody_reads(host: Host) -> None:
    """A pipe that nobody reads blocks its process; read, it goes on to the end."""
    pid = (await host.ok("spawn", command="sh", args=["-c", "yes | head -c 5000000"], stdout="piped"))["pid"]
    waiting = asyncio.ensure_future(host.ok("processWait", pid=pid))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 0.2)

    call = await host.open("process.stdout", pid=pid)
    await call.record()

    assert len(await call.read_to_end()) == 5_000_000
    assert await waiting == SUCCESS


async def test_a_slow_reader_holds_the_process_back(host: Host, agent: object) -> None:
    """An endless output that is not taken costs the agent a bounded amount of memory."""
    pid = (await host.ok("spawn", command="yes", stdout="piped"))["pid"]
    call = await host.open("process.stdout", pid=pid)
    await call.record()
    await asyncio.sleep(0.3)

    status = Path(f"/proc/{agent.process.pid}/status").read_text()  # type: ignore[attr-defined]
    assert int(status.split("VmRSS:")[1].split()[0]) < 80_000
    assert await host.ok("ping")
    await call.reset()
    await host.ok("processKill", pid=pid, signal="SIGKILL")


async def test_input_reaches_the_process(host: Host) -> None:
    """The input is the process's standard input, and its end closes that."""
    pid = (await host.ok("spawn", command="cat", stdin="piped", stdout="piped"))["pid"]
    feeding = await host.open("process.stdin", pid=pid)
    reading = await host.open("process.stdout", pid=pid)
    await reading.record()
    content = os.urandom(1_500_000)

    async def feed() -> None:
        await feeding.write(content)
        await feeding.end()

    task = asyncio.ensure_future(feed())
    assert await reading.read_to_end() == content
    await task
    assert await feeding.record() == {"ok": None}
    assert await feeding.read_to_end() == b""
    assert await host.ok("processWait", pid=pid) == SUCCESS


async def test_output_ends_when_stdin_is_closed_by_the_process(host: Host) -> None:
    """Whoever feeds a process that closed its input learns so at once."""
    pid = (await host.ok("spawn", command="sh", args=["-c", "exec <&-; sleep 60"], stdin="piped"))["pid"]
    feeding = await host.open("process.stdin", pid=pid)

    assert await feeding.record() == {"ok": None}
    assert await asyncio.wait_for(feeding.read_to_end(), 5) == b""
    await host.ok("processKill", pid=pid, signal="SIGKILL")


async def test_stdin_after_the_exit(host: Host) -> None:
    """Feeding a process that has ended is no error: nobody is left to read."""
    pid = (await host.ok("spawn", command="true", stdin="piped"))["pid"]
    await host.ok("processWait", pid=pid)

    assert await host.ok("process.stdin", data=b"late", pid=pid) is None


async def test_given_up_input_closes_the_pipe(host: Host) -> None:
    """When the feeding call is reset the process sees the end of its input."""
    pid = (await host.ok("spawn", command="cat", stdin="piped"))["pid"]
    feeding = await host.open("process.stdin", pid=pid)
    await feeding.record()
    await feeding.reset()

    assert await asyncio.wait_for(host.ok("processWait", pid=pid), 5) == SUCCESS


async def test_process_list(host: Host) -> None:
    """Running and ended processes are listed with what they were started as."""
    pid = (await host.ok("spawn", command="sleep", args=["60"]))["pid"]

    entry = next(entry for entry in await host.ok("process.list") if entry["pid"] == pid)
    assert (entry["command"], entry["args"], entry["running"]) == ("sleep", ["60"], True)
    assert abs(entry["started"] - time.time()) < 60
    await host.ok("processKill", pid=pid)
    await host.ok("processWait", pid=pid)

    ended = next(entry for entry in await host.ok("process.list") if entry["pid"] == pid)
    assert not ended["running"]
    assert 0 < ended["seconds"] < 60


async def test_own_session(host: Host) -> None:
    """A process leads a session of its own, with no descriptor but its three."""
    _, out = await host.run("sh", "-c", "ps -o sid= -p $$; echo $$; ls /proc/self/fd")
    sid, pid, *fds = out.split()

    assert sid == pid
    assert fds == [b"0", b"1", b"2", b"3"]  # 3 is ls's own


async def test_a_hundred_at_once(host: Host) -> None:
    """Many processes at once all end with their own status."""
    results = await asyncio.gather(*(host.run("sh", "-c", f"echo {number}; exit {number}") for number in range(100)))

    assert [(status["code"], int(out)) for status, out in results] == [(number, number) for number in range(100)]


async def test_a_spawn_that_is_given_up(host: Host) -> None:
    """A process whose call was reset in between is in the list all the same."""
    call = await host.open("spawn", command="sleep", args=["61"])
    await host.ok("ping")  # the call has begun, and very probably has not been answered
    await call.reset()
    await asyncio.sleep(0.3)

    entry = next(entry for entry in await host.ok("process.list") if entry["args"] == ["61"])
    await host.ok("processKill", pid=entry["pid"])


async def test_too_long_a_command_line(host: Host) -> None:
    """Arguments that the kernel does not take are refused with its reason."""
    assert (await host.error("spawn", command="true", args=["x" * 500_000]))[1] == "E2BIG"


async def test_processes_survive_the_link(host: Host, agent: object) -> None:
    """A new link finds the processes of the last one, their output unread."""
    pid = (await host.ok("spawn", command="sh", args=["-c", "sleep 0.2; echo late"], stdout="piped"))["pid"]
    await host.close()

    again = await Host(agent.connection).linked()  # type: ignore[attr-defined]
    call = await again.open("process.stdout", pid=pid)
    await call.record()
    assert await call.read_to_end() == b"late\n"
    await again.close()


async def test_stopped_process_is_not_ended(host: Host) -> None:
    """A process that is only stopped is still waited for."""
    pid = (await host.ok("spawn", command="sleep", args=["60"]))["pid"]
    os.kill(pid, signal.SIGSTOP)
    waiting = asyncio.ensure_future(host.ok("processWait", pid=pid))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 0.1)
    await host.ok("processKill", pid=pid, signal="SIGKILL")

    assert (await waiting)["code"] == 137


async def test_reset_says_why(host: Host) -> None:
    """A request longer than allowed is refused by a reset."""
    call = await host.open("ping")
    await call.end()
    await call.record()
    number, frame = host.mux.open()
    await host.write(frame + host.mux.data(number, (2**31).to_bytes(4, "big")))

    assert await host.ok("ping")


async def spare(agent: RunningAgent) -> int:
    """The child that the spawner has made in advance, once all others have ended."""
    async with asyncio.timeout(10):
        while len(found := children(children(agent.process.pid)[0])) != 1:
            await asyncio.sleep(0.02)
    return found[0]


async def test_a_child_waits_to_be_told_what_to_run(host: Host, agent: RunningAgent) -> None:
    """The next process is that child, and then there is another."""
    await host.run("true")
    child = await spare(agent)

    assert (await host.ok("spawn", command="true"))["pid"] == child
    assert await host.ok("processWait", pid=child) == SUCCESS
    assert await spare(agent) != child


async def test_a_child_that_was_killed_while_it_waited_is_nobodys(host: Host, agent: RunningAgent) -> None:
    """Its end is told of to nobody, and what is started next has a child of its own."""
    await host.run("true")
    os.kill(await spare(agent), signal.SIGKILL)
    assert await host.run("echo", "hello") == (SUCCESS, b"hello\n")


async def test_a_child_that_is_killed_as_it_is_told_has_run_nothing(host: Host, agent: RunningAgent) -> None:
    """Another one runs the command, once."""
    await host.run("true")
    child = await spare(agent)
    os.kill(child, signal.SIGSTOP)
    asked = spawn(host.run("echo", "hello"), name="run")
    await asyncio.sleep(0.5)  # the request is in its socket
    assert not asked.done()
    os.kill(child, signal.SIGKILL)
    assert await asked == (SUCCESS, b"hello\n")


async def test_a_child_has_nothing_open_but_what_it_is_told_by(host: Host, agent: RunningAgent) -> None:
    """Else whoever waits for the end of a pipe or of the spawner would wait for it."""
    held = await host.open("spawn", command="sleep", args=["60"], stdin="piped", stdout="piped", stderr="piped")
    pid = (await held.record())["ok"]["pid"]
    await host.run("true")
    async with asyncio.timeout(10):
        while len(found := set(children(children(agent.process.pid)[0])) - {pid}) != 1:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.1)  # until it waits
    opened = sorted(int(fd.name) for fd in Path(f"/proc/{found.pop()}/fd").iterdir())
    assert opened[:3] == [0, 1, 2]
    assert len(opened) == 5, opened
    await host.ok("processKill", pid=pid)


async def test_it_ends_with_the_agent(tmp_path: Path) -> None:
    """Also where the agent is killed."""
    for kill in (False, True):
        agent = RunningAgent(tmp_path)
        try:
            host = await Host(agent.connection).linked()
            await host.run("true")
            child = await spare(agent)
            if kill:
                agent.process.kill()
            await host.close()
        finally:
            agent.stop()
        async with asyncio.timeout(10):
            while Path(f"/proc/{child}").exists():
                await asyncio.sleep(0.02)
