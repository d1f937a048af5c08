from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from tests.vm.guest.host import Conversation, Host, WasReset


async def opened(host: Host, *command: str, **params: Any) -> str:
    return str((await host.ok("terminal.open", cols=80, rows=24, command=list(command) or None, **params))["id"])


async def attached(host: Host, terminal: str, **params: Any) -> tuple[dict[str, Any], Conversation]:
    call = await host.open("terminal.attach", id=terminal, **params)
    return (await call.record())["ok"], call


async def entry(host: Host, terminal: str) -> dict[str, Any]:
    return dict(next(one for one in await host.ok("terminal.list") if one["id"] == terminal))


async def ended(host: Host, terminal: str) -> dict[str, Any]:
    deadline = asyncio.get_running_loop().time() + 10
    while (found := await entry(host, terminal))["running"]:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)
    return found


async def test_a_shell_answers(host: Host) -> None:
    """What is typed reaches a login shell on a real terminal, and its output comes back."""
    terminal = await opened(host)
    _, call = await attached(host, terminal)
    await call.write(b"echo $((6*7)) $TERM $0; tty\n")

    seen = await call.read_until(b"/dev/pts/")
    assert b"42 xterm-256color -bash" in seen
    await host.ok("terminal.close", id=terminal)


async def test_output_ends_with_the_process(host: Host) -> None:
    """The output ends when the process has ended and all was sent; its status stays in the list."""
    terminal = await opened(host, "sh", "-c", "echo bye; exit 7")
    _, call = await attached(host, terminal)

    assert await call.read_to_end() == b"bye\r\n"
    assert (await ended(host, terminal))["exit"] == 7


async def test_attach_after_the_end(host: Host) -> None:
    """The output of a process that has ended can still be read."""
    terminal = await opened(host, "sh", "-c", "seq 20000")
    await ended(host, terminal)
    _, call = await attached(host, terminal)

    assert (await call.read_to_end()).endswith(b"20000\r\n")


async def test_offset_goes_on_where_the_viewer_was(host: Host) -> None:
    """A viewer that comes back with its offset gets exactly what it has not seen."""
    terminal = await opened(host, "sh", "-c", "printf one; read x; printf two")
    info, call = await attached(host, terminal)
    assert (info["offset"], info["truncated"]) == (0, False)
    seen = await call.read_until(b"one")
    await call.reset()
    info, call = await attached(host, terminal, offset=len(seen))
    assert (info["offset"], info["truncated"]) == (len(seen), False)
    await call.write(b"\n")

    assert (await call.read_to_end()).endswith(b"two")


@pytest.mark.parametrize("offset", [-1, 10**9])
async def test_offset_that_never_was(host: Host, offset: int) -> None:
    """An offset out of range begins at the start of what is kept, and says so."""
    terminal = await opened(host, "printf", "abc")
    await ended(host, terminal)
    info, call = await attached(host, terminal, offset=offset)

    assert (info["offset"], info["end"], info["truncated"]) == (0, 3, True)
    assert await call.read_to_end() == b"abc"


async def test_without_viewer_the_last_mebibyte_is_kept(host: Host) -> None:
    """With nobody watching the process goes on, and the ring keeps the newest MiB."""
    terminal = await opened(host, "sh", "-c", "yes | tr -d '\\n' | head -c 4000000; printf END")
    await ended(host, terminal)
    info, call = await attached(host, terminal, offset=0)
    output = await call.read_to_end()

    assert info["truncated"]
    assert info["end"] == 4_000_003
    assert info["offset"] == info["end"] - len(output)
    assert 2**20 <= len(output) <= 2**20 + 2**19
    assert output.endswith(b"yEND")


async def test_two_viewers_see_the_same(host: Host) -> None:
    """Every viewer gets all of the output."""
    terminal = await opened(host, "sh", "-c", "read x; seq 1000")
    _, first = await attached(host, terminal)
    _, second = await attached(host, terminal)
    await second.write(b"\n")

    outputs = await asyncio.gather(first.read_to_end(), second.read_to_end())
    assert outputs[0] == outputs[1]
    assert outputs[0].endswith(b"1000\r\n")


async def test_a_slow_viewer_holds_the_process_back(host: Host) -> None:
    """A viewer gets every byte of more than the ring holds, though it begins to read late."""
    terminal = await opened(host, "sh", "-c", "read x; yes | tr -d '\\n' | head -c 5000000; printf END")
    _, call = await attached(host, terminal)
    await call.write(b"\n")
    await asyncio.sleep(0.5)
    assert (await entry(host, terminal))["running"]

    assert len((await call.read_to_end()).lstrip(b"\r\n")) == 5_000_003


async def test_a_viewer_that_takes_nothing_is_given_up(host: Host) -> None:
    """After ten seconds a viewer that reads nothing is reset, and the others and the process go on."""
    terminal = await opened(host, "sh", "-c", "read x; yes | tr -d '\\n' | head -c 3000000; printf END")
    _, stuck = await attached(host, terminal)
    _, reading = await attached(host, terminal)
    await reading.write(b"\n")
    output = await asyncio.wait_for(reading.read_to_end(), 30)

    assert output.endswith(b"END")
    with pytest.raises(WasReset):
        await stuck.read_to_end()


async def test_resize(host: Host) -> None:
    """The program sees its new size, by resize and by attach; the list tells it."""
    terminal = await opened(host, "sh", "-c", "stty size; read x; stty size; read x; stty size")
    _, call = await attached(host, terminal)
    await call.read_until(b"24 80")
    await host.ok("terminal.resize", id=terminal, cols=100, rows=30)
    await call.write(b"\n")
    await call.read_until(b"30 100")
    info, _ = await attached(host, terminal, cols=120, rows=40)
    await call.write(b"\n")
    await call.read_until(b"40 120")

    assert (info["cols"], info["rows"]) == (120, 40)
    assert ((await entry(host, terminal))["cols"]) == 120


async def test_impossible_size(host: Host) -> None:
    """A size of nought, or a giant one, is refused."""
    assert (await host.error("terminal.open", cols=0, rows=24))[0] == "RangeError"
    assert (await host.error("terminal.open", cols=80, rows=70_000))[0] == "RangeError"


async def test_close_hangs_up(host: Host) -> None:
    """A closed terminal's process hears SIGHUP and the terminal is gone."""
    terminal = await opened(host, "sh", "-c", "trap 'echo hung; exit' HUP; echo ready; while :; do sleep 0.05; done")
    _, call = await attached(host, terminal)
    await call.read_until(b"ready")
    await host.ok("terminal.close", id=terminal)

    assert b"hung" in await call.read_to_end()
    assert (await host.error("terminal.attach", id=terminal))[0] == "BadResource"


async def test_close_kills_what_does_not_listen(host: Host) -> None:
    """A process that ignores the hang-up is killed a second later."""
    terminal = await opened(host, "sh", "-c", "trap '' HUP; echo ready; while :; do sleep 0.05; done")
    _, call = await attached(host, terminal)
    await call.read_until(b"ready")
    await host.ok("terminal.close", id=terminal)

    await asyncio.wait_for(call.read_to_end(), 5)


async def test_cwd_env_and_title(host: Host, home: Any) -> None:
    """A terminal starts where and with what it is told, and is named."""
    terminal = await opened(host, "sh", "-c", 'pwd; echo "$OWN"', cwd=str(home), env={"OWN": "mine"}, title="build")
    _, call = await attached(host, terminal)
    output = await call.read_to_end()

    assert os.fsencode(home.resolve()) in output
    assert b"mine" in output
    assert (await entry(host, terminal))["title"] == "build"


async def test_missing_command(host: Host) -> None:
    """A command that does not exist is NotFound, and no terminal is left."""
    before = len(await host.ok("terminal.list"))

    assert await host.error("terminal.open", cols=80, rows=24, command=["no-such"]) == ("NotFound", "ENOENT")
    assert len(await host.ok("terminal.list")) == before


async def test_at_most_64(host: Host) -> None:
    """The sixty-fifth running terminal is refused; ended ones make room."""
    for one in await host.ok("terminal.list"):
        await host.ok("terminal.close", id=one["id"])
    terminals = [await opened(host, "sleep", "60") for _ in range(64)]
    assert await host.error("terminal.open", cols=80, rows=24) == ("Busy", "EMFILE")
    await host.ok("terminal.close", id=terminals[0])
    last = await opened(host, "true")
    await ended(host, last)

    assert await opened(host, "sleep", "60")
    for one in await host.ok("terminal.list"):
        await host.ok("terminal.close", id=one["id"])


async def test_a_terminal_survives_the_link(host: Host, agent: Any) -> None:
    """A new link finds the same shell with its screen."""
    terminal = await opened(host)
    _, call = await attached(host, terminal)
    await call.write(b"MARK=kept\n")
    await call.read_until(b"kept")
    await host.close()

    again = await Host(agent.connection).linked()
    info, call = await attached(again, terminal)
    assert b"MARK=kept" in await call.read_until(b"kept")
    await call.write(b"echo got-$MARK\n")
    await call.read_until(b"got-kept")
    assert info["offset"] == 0
    await again.ok("terminal.close", id=terminal)
    await again.close()


async def test_a_signal_for_the_foreground(host: Host) -> None:
    """What runs in the foreground is signalled, not the shell that waits for it."""
    terminal = await opened(host, "bash", "--norc")
    _, call = await attached(host, terminal)
    child = 'trap "echo child-"heard USR1; echo re""ady; while :; do sleep 0.1; done'
    await call.write(f"trap 'echo shell-heard' USR1; bash -c '{child}'\n".encode())
    await call.read_until(b"ready")
    await host.ok("terminal.kill", id=terminal, signal="SIGUSR1")
    assert b"shell-heard" not in await call.read_until(b"child-heard")
    assert (await host.error("terminal.kill", id=terminal, signal="SIGNONE"))[1] == "EINVAL"
    assert (await host.error("terminal.kill", id="none", signal="SIGINT"))[1] == "EBADF"
    await host.ok("terminal.close", id=terminal)
