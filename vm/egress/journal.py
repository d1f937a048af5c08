"""What is written down of each connection, and the last of it, kept in memory."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

KEPT = 1000


class Verdict(StrEnum):
    """How a connection ended up."""

    ALLOWED = "allowed"
    DENIED = "denied"
    FAILED = "failed"  # allowed, but its host could not be found or reached
    CUT = "cut"  # allowed at first; then the policy changed


@dataclass(frozen=True, slots=True)
class Passage:
    """One connection that has ended. `began` in epoch seconds; bytes as the guest `sent` and `received` them."""

    began: float
    host: str
    port: int
    verdict: Verdict
    rule: str
    detail: str
    sent: int
    received: int
    seconds: float


class Journal:
    """The last passages of one machine."""

    def __init__(self) -> None:
        self.passages: deque[Passage] = deque(maxlen=KEPT)

    def __call__(self, passage: Passage) -> None:
        """Write it down."""
        self.passages.append(passage)
