"""A capability covers what it names, for as long as it says, and nobody without the key can make one."""

from __future__ import annotations

import pytest

from vm.errors import NotAllowed
from vm.node import capability

KEY = b"k" * 32
MACHINE = "0" * 32


def test_it_covers_what_it_names() -> None:
    token = capability.mint(KEY, machine=MACHINE, verbs=["machine_get", "stream"], expires=100.0)
    capability.require(KEY, token, machine=MACHINE, verb="stream", now=99.0)
    every = capability.mint(KEY, machine=capability.ANY, verbs=["machine_get"], expires=100.0)
    capability.require(KEY, every, machine=MACHINE, verb="machine_get", now=99.0)


@pytest.mark.parametrize(
    ("machine", "verb", "now"),
    [("1" * 32, "stream", 99.0), (MACHINE, "machine_stop", 99.0), (MACHINE, "stream", 101.0), ("", "stream", 99.0)],
)
def test_it_covers_nothing_else(machine: str, verb: str, now: float) -> None:
    token = capability.mint(KEY, machine=MACHINE, verbs=["stream"], expires=100.0)
    with pytest.raises(NotAllowed):
        capability.require(KEY, token, machine=machine, verb=verb, now=now)


def test_a_forged_one_is_refused() -> None:
    """Another key, a changed claim, no signature, no text, far too much text: all the same answer."""
    good = capability.mint(KEY, machine=MACHINE, verbs=["stream"], expires=1e12)
    other = capability.mint(b"x" * 32, machine=MACHINE, verbs=["stream"], expires=1e12)
    wider = capability.mint(b"x" * 32, machine="*", verbs=["stream"], expires=1e12)
    mixed = wider.partition(".")[0] + "." + good.partition(".")[2]
    for token in (other, mixed, good.partition(".")[0], good + "A", "", "..", "é.é", None, 7, "a" * 100_000):
        with pytest.raises(NotAllowed):
            capability.require(KEY, token, machine=MACHINE, verb="stream")
