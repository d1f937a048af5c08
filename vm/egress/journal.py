"""What is written down of each connection, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

_TEXT = 500


class Verdict(StrEnum):
    """How a connection ended up."""

    ALLOWED = "allowed"
    DENIED = "denied"
    FAILED = "failed"  # allowed, but its host could not be found or reached
    CUT = "cut"  # allowed at first; then the policy changed
    ASKED = "asked"  # not over yet: it waits for a decision, for so many `seconds` from when it `began`


@dataclass(frozen=True, slots=True)
class Passage:
    """One connection that has ended, or waits to be allowed.

    `began` in epoch seconds; bytes as the guest `sent` and `received` them.

    `kind` says what it was; `method`, `path` and `status` are of a request, where somebody could read it.
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
    kind: str = "connection"
    method: str = ""
    path: str = ""
    status: int = 0


_FIELDS = frozenset(field.name for field in fields(Passage))


def passage_to_json(passage: Passage) -> dict[str, Any]:
    """Plain JSON types, keys as its fields; texts of at most 500 characters."""
    return {key: value[:_TEXT] if isinstance(value, str) else value for key, value in asdict(passage).items()}


def passage_from_json(data: Mapping[str, Any]) -> Passage:
    """The inverse of `passage_to_json`; what another version added is left out. TypeError, KeyError, ValueError."""
    known = {key: value for key, value in data.items() if key in _FIELDS}
    return Passage(**{**known, "verdict": Verdict(data["verdict"])})
