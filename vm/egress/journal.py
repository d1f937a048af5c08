"""What is written down of each connection and request, and the last of it, kept in memory."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

KEPT = 1000


class Verdict(StrEnum):
    """How a connection ended up."""

    ALLOWED = "allowed"
    DENIED = "denied"
    FAILED = "failed"  # allowed, but its host could not be found or reached
    CUT = "cut"  # allowed at first; then the policy changed


class Kind(StrEnum):
    """What a passage is about."""

    CONNECTION = "connection"
    REQUEST = "request"  # one on a connection that was intercepted
    ALERT = "alert"  # somebody should look; nothing was held up


@dataclass(frozen=True, slots=True)
class Passage:
    """Something that has ended. `began` in epoch seconds; bytes as the guest `sent` and `received` them.

    The last three are a request's only: `path` has of its query the names, and no value of a secret; `status` is 0
    where there was no answer.
    """

    began: float
    host: str
    port: int
    verdict: Verdict
    rule: str
    detail: str
    sent: int
    received: int
    seconds: float
    kind: Kind = Kind.CONNECTION
    method: str = ""
    path: str = ""
    status: int = 0


def passage_from_json(data: dict[str, Any]) -> Passage:
    """The inverse of `dataclasses.asdict`. TypeError, ValueError, KeyError."""
    return Passage(**{**data, "verdict": Verdict(data["verdict"]), "kind": Kind(data["kind"])})


def stray_placeholder(host: str, port: int, secret: str | None, *, plain: bool = False) -> Passage:
    """An alert: the placeholder of that secret (None: of none that is known) goes where it means nothing."""
    whose = f"The placeholder of {secret}" if secret is not None else "A placeholder that is none of this sandbox's"
    why = "in plain text: values travel over TLS only" if plain else "which it is not bound to"
    return Passage(
        began=time.time(),
        host=host,
        port=port,
        verdict=Verdict.ALLOWED,
        rule="secrets",
        detail=f"{whose} was sent to {host}, {why}.",
        sent=0,
        received=0,
        seconds=0.0,
        kind=Kind.ALERT,
    )


class Journal:
    """The last passages of one machine."""

    def __init__(self) -> None:
        self.passages: deque[Passage] = deque(maxlen=KEPT)

    def __call__(self, passage: Passage) -> None:
        """Write it down."""
        self.passages.append(passage)
