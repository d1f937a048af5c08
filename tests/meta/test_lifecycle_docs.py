"""Every reason for which a sandbox may end is in the table of docs/lifecycle.md, in the words that people are shown."""

from __future__ import annotations

import re
from pathlib import Path

from sandboxes.models import StopCause

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "lifecycle.md"


def table() -> list[list[str]]:
    """The cells of each row of the first table, without its head."""
    lines = DOCUMENT.read_text().split("\n")
    begin = next(number for number, line in enumerate(lines) if line.startswith("| what ends a workspace"))
    rows = []
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_no_reason_is_missing() -> None:
    told = [code for row in table() for code in re.findall(r"`(\w+)`", row[4])]
    assert set(told) == set(StopCause.values)


def test_the_table_says_what_people_read() -> None:
    """`requested` is told in words of its own, with who asked for it."""
    for row in table():
        for code in re.findall(r"`(\w+)`", row[4]):
            if code != StopCause.REQUESTED:
                assert StopCause(code).label in row[2], f"{code}: {row[2]}"
