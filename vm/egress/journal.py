"""What is written down of each connection and request, as plain data."""

from __future__ import annotations

import time
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


class Kind(StrEnum):
    """What a passage is about."""

    CONNECTION = "connection"
    REQUEST = "request"  # one on a connection that was intercepted
    ALERT = "alert"  # somebody should look; nothing was held up


@dataclass(frozen=True, slots=True)
class Passage:
    """Something that has ended, or a connection that waits to be allowed.

    `began` in epoch seconds; bytes as the guest `sent` and `received` them. The last three are a request's only: `path`
    has of its query the names, and no value of a secret; `status` is 0 where there was no answer.
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


_FIELDS = frozenset(field.name for field in fields(Passage))


def passage_to_json(passage: Passage) -> dict[str, Any]:
    """Plain JSON types, keys as its fields; texts of at most 500 characters."""
    return {key: value[:_TEXT] if isinstance(value, str) else value for key, value in asdict(passage).items()}


def passage_from_json(data: Mapping[str, Any]) -> Passage:
    """The inverse of `passage_to_json`; what another version added is left out. TypeError, KeyError, ValueError."""
    known = {key: value for key, value in data.items() if key in _FIELDS}
    return Passage(**{**known, "verdict": Verdict(data["verdict"]), "kind": Kind(data.get("kind", Kind.CONNECTION))})
