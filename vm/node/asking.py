"""The node's own calls to a machine's agent, whose answers are a guest's: each is checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vm.errors import MachineFailed
from vm.guest.calls import call
from vm.guest.channel import Channel

_LONGEST = 262_144  # bytes of an answer, which is parsed while every other machine waits
_PIDS = 2**22  # as the kernel counts them


async def answer_of(
    channel: Channel,
    method: str,
    params: Mapping[str, Any] | None = None,
    *,
    patience: float = 5.0,
    early: bool = False,
) -> dict[str, Any]:
    """The agent's reply record, on a stream of the node's own. Whatever Channel.open raises; StreamReset for nonsense.

    `patience` is for the link only: how long an answer is waited for is the caller's.
    """
    stream = await channel.open(timeout=patience, early=early, own=True)
    return await call(stream, method, params, longest=_LONGEST)


async def ask(
    channel: Channel,
    method: str,
    params: Mapping[str, Any] | None = None,
    *,
    patience: float = 5.0,
    early: bool = False,
) -> Any:
    """The value that the agent answers with, as `answer_of`; MachineFailed with its own words where it refuses."""
    return value_of(await answer_of(channel, method, params, patience=patience, early=early))


def value_of(answer: Mapping[str, Any]) -> Any:
    """The value of a reply record. MachineFailed with the agent's own words where it has none."""
    if "ok" not in answer:
        raise MachineFailed(f"its agent refused: {printable(answer, 300)}")
    return answer["ok"]


def pid_of(value: Any) -> int:
    """The process that `spawn` answers with. MachineFailed where that is none."""
    pid = value.get("pid") if isinstance(value, dict) else None
    if not isinstance(pid, int) or not 0 < pid <= _PIDS:
        raise MachineFailed(f"its agent names no process: {printable(value, 100)}")
    return pid


def seconds_of(value: Any, name: str) -> float:
    """A time that the agent answers with under that name. MachineFailed where that is none."""
    seconds = value.get(name) if isinstance(value, dict) else None
    if not isinstance(seconds, int | float) or not 0 <= seconds < 1e12:  # not NaN either, nor an integer of any length
        raise MachineFailed(f"its agent gives no {name}: {printable(value, 100)}")
    return float(seconds)


def printable(said: object, limit: int = 500) -> str:
    """What a guest said as a person may be shown it, and a database may keep it."""
    return "".join(letter if letter.isprintable() else " " for letter in str(said)[:limit])
