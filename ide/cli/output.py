"""Tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print what the server answered, as JSON.")


def json_print(value: Any, *, one_line: bool = False) -> None:
    """The value, indented, or on a line of its own."""
    click.echo(json.dumps(value, indent=None if one_line else 2, ensure_ascii=False))


def table_print(rows: Sequence[Sequence[object]], heads: Sequence[str]) -> None:
    """Columns as wide as they have to be; nothing but the heads for no rows."""
    texts = [[plain(str(cell)) for cell in row] for row in [heads, *rows]]
    widths = [max(len(row[column]) for row in texts) for column in range(len(heads))]
    for number, row in enumerate(texts):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        click.echo(click.style(line, bold=True) if number == 0 else line)


def pairs_print(pairs: Mapping[str, object]) -> None:
    """One name and value a line; what is empty is left out."""
    width = max(map(len, pairs))
    for name, value in pairs.items():
        if value not in (None, ""):
            click.echo(f"{name.ljust(width)}  {plain(str(value))}")


def plain(text: str) -> str:
    """Without control characters: others choose names and sentences, and a terminal obeys them."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def ago(moment: str | None, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> str:
    """How long ago an ISO time was, or how long until then: "5m", "in 2h"."""
    if not moment:
        return ""
    seconds = (now() - datetime.fromisoformat(moment)).total_seconds()
    text = next(
        (
            f"{abs(seconds) // size:.0f}{unit}"
            for unit, size in (("d", 86_400), ("h", 3600), ("m", 60))
            if abs(seconds) >= size
        ),
        f"{abs(seconds):.0f}s",
    )
    return f"in {text}" if seconds < 0 else text
