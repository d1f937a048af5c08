"""Checks the few parameters that the front door uses itself; all others are the agent's to check."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping
from typing import Any

from ide.rpc.envelope import InvalidParams

SLICE = 64 * 1024
_ENCODED = SLICE // 3 * 4


def integer(params: Mapping[str, Any], name: str) -> int:
    """A whole number that must be there; 0 is one."""
    value = params.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidParams.one(name, "number")
    return value


def optional_integer(params: Mapping[str, Any], name: str) -> int | None:
    """A whole number, or None if absent or null."""
    return None if params.get(name) is None else integer(params, name)


def string(params: Mapping[str, Any], name: str) -> str:
    """A string that must be there; may be empty."""
    value = params.get(name)
    if not isinstance(value, str):
        raise InvalidParams.one(name, "string")
    return value


async def decoded(text: str, name: str) -> AsyncIterator[bytes]:
    """The bytes of a base64 string, piece by piece, so that a large one is never held twice."""
    for at in range(0, len(text), _ENCODED):
        try:
            yield base64.b64decode(text[at : at + _ENCODED], validate=True)
        except ValueError:
            raise InvalidParams.one(name, "base64 string") from None


def only(params: Mapping[str, Any], *dropped: str) -> dict[str, Any]:
    """The parameters without those that are the front door's."""
    return {name: value for name, value in params.items() if name not in dropped}


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
    """Python sends options as an object of their own, JavaScript beside the others: to the agent they are flat."""
    options = params.get("options")
    if options is None:
        return only(params, "options")
    if not isinstance(options, dict):
        raise InvalidParams.one("options", "object")
    return {**only(params, "options"), **options}
