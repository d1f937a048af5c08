"""Values as they are typed: times, pairs, and a sandbox's file."""

from __future__ import annotations

import re
from typing import Any

import click

UNLIMITED = "unlimited"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Duration(click.ParamType[int]):
    """A time such as 90s, 30m, 2h or 1d, in seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]{1,7})([smhd])", value)
        if found is None or int(found[1]) == 0:
            self.fail(f"{value!r} is no time such as 90s, 30m, 2h or 1d", param, ctx)
        return int(found[1]) * _UNITS[found[2]]


class Lifetime(click.ParamType["int | str"]):
    """A Duration, or `unlimited`."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Seconds, or that word."""
        return UNLIMITED if value == UNLIMITED else Duration().convert(value, param, ctx)


class Pair(click.ParamType[tuple[str, str]]):
    """NAME=VALUE."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Name and value."""
        if isinstance(value, tuple):
            return value
        name, sign, rest = value.partition("=")
        if not sign or not name:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        return name, rest
