"""Collects measured numbers and prints them with their references, limits and verdicts."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Number:
    """One measured number. `limit` is compared with `value` itself, or with value / reference where one is named."""

    name: str
    value: float
    unit: str
    reference: float | None = None
    reference_name: str = ""
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def judged(self) -> float:
        """What the limit is about: the ratio where there is a reference."""
        return self.value / self.reference if self.reference else self.value

    @property
    def verdict(self) -> str:
        """ "met", "missed", or empty for a number that is only printed."""
        if self.at_most is not None:
            return "met" if self.judged <= self.at_most else "missed"
        if self.at_least is not None:
            return "met" if self.judged >= self.at_least else "missed"
        return ""

    @property
    def promise(self) -> str:
        """The limit in words."""
        limit, word = (self.at_most, "at most") if self.at_most is not None else (self.at_least, "at least")
        if limit is None:
            return ""
        return f"{word} {limit:g}{' x reference' if self.reference else ' ' + self.unit}"


def median(values: Iterable[float]) -> float:
    """The median, which one disturbed run does not move."""
    return statistics.median(values)


def quantile(values: Iterable[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie, the nearest measured one."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def show(numbers: Iterable[Number]) -> None:
    """Print the table; machines are shared and noisy, so it is a report and never a failing test."""
    table = Table(title="Atoll bench", title_justify="left")
    for heading in ("number", "value", "reference", "ratio", "promise", "verdict"):
        table.add_column(heading)
    for number in numbers:
        table.add_row(
            number.name + (f"\n  {number.note}" if number.note else ""),
            f"{number.value:.4g} {number.unit}",
            f"{number.reference:.4g} {number.unit} ({number.reference_name})" if number.reference else "",
            f"{number.judged:.2f}" if number.reference else "",
            number.promise,
            number.verdict,
        )
    Console(width=170).print(table)
