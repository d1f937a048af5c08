from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.vm.guest.host import Host
from vm.guest.agent import machine


async def test_ping_tells_version_and_uptime(host: Host) -> None:
    """A ping is answered with the agent's version and age."""
    answer = await host.ok("ping")

    assert answer["version"] == 1
    assert answer["uptime"] >= 0


async def test_unknown_method(host: Host) -> None:
    """A method that does not exist is said to be unknown, not an error of the call."""
    assert await host.ask("abort") == {"unknown": True}


async def test_identity_sets_the_environment(host: Host) -> None:
    """Variables of the identity are there for whatever is started later."""
    await host.ok("identity", hostname="sbx-1", env={"FROM_IDENTITY": "yes"})

    assert await host.ok("envGet", key="FROM_IDENTITY") == "yes"
    assert (await host.run("sh", "-c", 'printf "$FROM_IDENTITY"'))[1] == b"yes"


async def test_identity_refuses_a_bad_name(host: Host) -> None:
    """A host name that is none is refused."""
    assert await host.error("identity", hostname="a b") == ("TypeError", "EINVAL")


async def test_clock_answers_with_a_skew(host: Host) -> None:
    """The clock's answer says by how much it was off; outside a machine nothing is set."""
    assert await host.ok("clock", time=0.5) == {"skew": 0.0}


async def test_usage_is_in_bytes(host: Host) -> None:
    """Usage tells memory and disk in bytes, load and number of processes."""
    usage = await host.ok("usage")

    assert usage["memory_total"] >= usage["memory_available"] > 2**20
    assert usage["disk_total"] >= usage["disk_free"] > 0
    assert len(usage["load"]) == 3
    assert usage["processes"] > 1


def test_entropy_is_credited_and_used_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel counts every bit of it, and draws from it before anybody's code does (random(4))."""
    asked: list[tuple[int, bytes | None]] = []

    def ioctl(handle: int, request: int, argument: bytes | None) -> int:
        asked.append((request, argument))
        return 0

    monkeypatch.setattr(machine, "_libc", SimpleNamespace(ioctl=ioctl))
    seed = bytes(range(48))
    machine._add_entropy(seed)
    bits, size = (8 * 48).to_bytes(4, "little"), (48).to_bytes(4, "little")
    assert asked == [(0x40085203, bits + size + seed), (0x5207, None)]


def test_entropy_that_is_not_taken_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that went on without would draw what other clones draw."""
    monkeypatch.setattr(machine, "_libc", SimpleNamespace(ioctl=lambda *_: -1))
    with pytest.raises(OSError, match="/dev/urandom"):
        machine._add_entropy(bytes(48))


async def test_shutdown_answers(host: Host) -> None:
    """Shutdown answers null once the file systems are flushed."""
    assert await host.ok("shutdown") is None


async def test_a_broken_link_begins_anew(host: Host, agent: Any) -> None:
    """After bytes that are no frames the agent drops all input up to the next preamble, and answers again."""
    call = await host.open("session", "s")
    await call.record()
    await host.write(b"\xff" * 100_000)
    await host.close()

    again = await Host(agent.connection).linked()
    assert await again.ok("ping")
    await again.close()


async def test_a_flood_of_calls(host: Host) -> None:
    """As many calls as a link may have at once are all answered."""
    calls = [await host.open("ping") for _ in range(1000)]

    for call in calls:
        assert (await call.record())["ok"]["version"] == 1


async def test_unread_answers_hold_up_nobody(host: Host, agent: Any) -> None:
    """Calls whose output nobody takes cost a window each, and other calls are answered."""
    calls = [await host.open("readFile", path="/dev/zero") for _ in range(50)]
    for call in calls:
        await call.record()

    assert await host.ok("ping")
    status = Path(f"/proc/{agent.process.pid}/status").read_text()
    assert int(status.split("VmRSS:")[1].split()[0]) < 200_000
    for call in calls:
        await call.reset()
