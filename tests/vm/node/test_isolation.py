"""What the doctor makes of attempts to get out: whatever gets out fails, and so does a trial that proves nothing."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from vm.egress.explain import answer
from vm.egress.policy import Decision
from vm.host.preflight import Finding, Level
from vm.node.isolation import CONTROL, WAYS, Attempts, Bait, baits, judged

HOST = IPv4Address("169.254.169.254")
NO = Decision(False, "some rule", "no")
REFUSED = answer(HOST, 80, NO).decode()
REACHED = {"got": "reached\n"}
HEARD = {"mark": 0, "control": 1}


def nothing_got_out() -> dict[str, Attempts]:
    tried: dict[str, Attempts] = {way: {"one": {"error": "name unknown"}, "two": {"got": REFUSED}} for way in WAYS}
    return {**tried, "control": {"tcp": REACHED}}


def failures(
    tried: Mapping[str, Attempts], bait: Bait | None = None, overheard: Mapping[str, int] = HEARD
) -> list[Finding]:
    found = judged(tried, bait or Bait("mark", asked=[CONTROL]), overheard)
    return [finding for finding in found if finding.level is Level.FAIL]


def test_a_guest_that_is_held_is_isolated() -> None:
    """Each way is a finding, and in full each attempt as well."""
    assert failures(nothing_got_out()) == []
    whole = judged(nothing_got_out(), Bait("mark", asked=[CONTROL]), HEARD, whole=True)
    assert len(whole) == 2 + 3 * len(WAYS)


@pytest.mark.parametrize("way", WAYS)
def test_whatever_gets_out_is_seen(way: str) -> None:
    """An answer that is not the gate's; and a way that was not tried proves nothing."""
    (failure,) = failures({**nothing_got_out(), way: {"that one": REACHED}})
    assert (failure.name, failure.seen.endswith(": that one")) == (way, True)
    (failure,) = failures({**nothing_got_out(), way: {}})
    assert "nothing was tried" in failure.seen


@pytest.mark.parametrize("way", WAYS)
def test_a_gate_that_dials_has_not_said_no(way: str) -> None:
    """It says so where nobody answers it, or says nothing for long: silence is a refusal by other ways only."""
    dialled = {"got": answer(HOST, 80, NO, failed=True).decode()}
    assert [one.name for one in failures({**nothing_got_out(), way: {"that one": dialled}})] == [way]
    silent = failures({**nothing_got_out(), way: {"that one": {"error": "no answer"}}})
    assert [one.name for one in silent] == [way] * (way in ("metadata", "private", "host"))


def test_what_is_heard_outside_is_seen() -> None:
    """On this host, by the resolver upstream, and by the other guest."""
    assert [one.name for one in failures(nothing_got_out(), Bait("mark", asked=[CONTROL], heard=["TCP from x"]))] == [
        "this host"
    ]
    assert [one.name for one in failures(nothing_got_out(), Bait("mark", asked=[CONTROL, "mark.tunnel.example"]))] == [
        "dns"
    ]
    assert [one.name for one in failures(nothing_got_out(), overheard={"mark": 2, "control": 1})] == ["neighbour"]


def test_a_trial_without_a_control_proves_nothing() -> None:
    """The host that is allowed must be reached, by its name, and the other guest must hear."""
    for tried, bait, overheard in (
        ({**nothing_got_out(), "control": {"tcp": {"error": "no answer"}}}, None, HEARD),
        (nothing_got_out(), Bait("mark"), HEARD),
        (nothing_got_out(), None, {"mark": 0, "control": 0}),
    ):
        assert [one.name for one in failures(tried, bait, overheard)] == ["control"]


async def test_the_baits_hear() -> None:
    """TCP and UDP on every address of this host."""
    import asyncio
    import socket

    async with baits() as bait:
        reader, writer = await asyncio.open_connection("127.0.0.1", bait.tcp)
        assert await reader.read() == b"reached\n"
        writer.close()
        if Path("/proc/net/if_inet6").exists():
            reader, writer = await asyncio.open_connection("::1", bait.tcp)
            assert await reader.read() == b"reached\n"
            writer.close()
            assert bait.heard.pop() == "TCP from ::1"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", ("127.0.0.1", bait.udp))
        async with asyncio.timeout(5):
            while len(bait.heard) < 2:
                await asyncio.sleep(0.01)
        assert sorted(bait.heard) == ["TCP from 127.0.0.1", "UDP from 127.0.0.1"]
