"""`manage.py stop_all`: brings every sandbox to rest; the supervisor's first step of going down."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from django.core.management.base import BaseCommand

from sandboxes.services.shutdown import all_to_rest


class Command(BaseCommand):
    """Bring all that runs to rest, with its reason written down."""

    help = "Suspend every workspace and every sandbox with a deadline of this installation, and stop all others."

    def handle(self, *args: Any, **options: Any) -> None:
        """Do it, and say how many there were of each."""
        self.stdout.write(said(asyncio.run(all_to_rest())))


def said(ends: Counter[str]) -> str:
    """One line about where they ended up, by state."""
    shown = {"suspended": "suspended", "stopped": "stopped", "running": "left running"}
    parts = [f"{ends[state]} {text}" for state, text in shown.items() if ends[state]]
    if not parts:
        return "0 sandboxes stopped"
    number, rest = parts[0].split(" ", 1)
    return ", ".join([f"{number} sandbox{'' if number == '1' else 'es'} {rest}", *parts[1:]])
