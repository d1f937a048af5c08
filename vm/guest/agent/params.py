"""Checks the parameters of a call against what its method declares; pure.

A declaration maps names to kinds: "string", "number", "integer", "boolean" and so on (`_KINDS`), with a trailing "?"
where the parameter may be absent or null; or to a nested declaration (an optional object).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from vm.guest.agent.errors import InvalidParams

type Declaration = Mapping[str, "str | Declaration"]

_MAX_INTEGER = 2**63 - 1
_OFFSET = re.compile(r"-?[0-9]{1,18}")


def _is_string(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MAX_INTEGER


def _is_integer(value: object) -> bool:
    return _is_number(value) and float(value) == int(value)  # type: ignore[arg-type,call-overload]


def _is_text_map(value: object) -> bool:
    return isinstance(value, dict) and all(_is_string(text) for text in value.values()) and all(map(_is_string, value))


_KINDS: dict[str, Callable[[object], bool]] = {
    "string": _is_string,
    "number": _is_number,
    "integer": _is_integer,
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "strings": lambda value: isinstance(value, list) and all(map(_is_string, value)),
    "record": _is_text_map,
    "offset": lambda value: _is_integer(value) or (isinstance(value, str) and _OFFSET.fullmatch(value) is not None),
    "time": lambda value: isinstance(value, str) or _is_number(value),
    "pattern": lambda value: isinstance(value, dict) and isinstance(value.get("source"), str),
    "patterns": lambda value: isinstance(value, list) and all(map(_KINDS["pattern"], value)),
}
_EXPECTED = {
    "strings": "array of strings",
    "record": "object of strings",
    "offset": "integer",
    "time": "ISO-8601 string or number",
    "pattern": "regular expression",
    "patterns": "array of regular expressions",
}


def checked(params: Mapping[str, Any], declaration: Declaration) -> dict[str, Any]:
    """Exactly the declared parameters, null where absent; unknown ones are dropped. InvalidParams."""
    issues: list[dict[str, object]] = []
    result = _checked(params, declaration, (), issues)
    if issues:
        raise InvalidParams(issues)
    return result


def _checked(
    params: Mapping[str, Any], declaration: Declaration, path: tuple[str, ...], issues: list[dict[str, object]]
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, kind in declaration.items():
        value = params.get(name)
        if not isinstance(kind, str):
            if value is None:
                value = {}
            if not isinstance(value, dict):
                issues.append(_issue((*path, name), "object", value))
                continue
            result[name] = _checked(value, kind, (*path, name), issues)
            continue
        required = not kind.endswith("?")
        kind = kind.removesuffix("?")
        if value is None and not required:
            result[name] = None
        elif value is None or not _KINDS[kind](value):
            issues.append(_issue((*path, name), _EXPECTED.get(kind, kind), value))
        else:
            result[name] = int(value) if kind in ("integer", "offset") else value
    return result


def _issue(path: tuple[str, ...], expected: str, value: object) -> dict[str, object]:
    received = "undefined" if value is None else type(value).__name__
    message = f"Invalid input: expected {expected}, received {received}"
    return {"code": "invalid_type", "expected": expected, "path": list(path), "message": message}
