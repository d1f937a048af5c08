"""`manage.py down`: stops what `manage.py up` runs, in order, and waits for it."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ide.env import env
from ide.installation import running

PATIENCE = 120.0  # seconds


class Command(BaseCommand):
    """Stop the running installation."""

    help = "Stop the installation that runs on this machine: sandboxes first, then every process."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        """Ask the supervisor to stop and wait until it has."""
        try:
            found = running(env())
        except PermissionError as error:
            raise CommandError("this needs root: use sudo") from error
        if found is None:
            self.stdout.write("Atoll does not run here.")
            return
        os.kill(found.pid, signal.SIGTERM)
        until = time.monotonic() + PATIENCE
        while running(env()) is not None:
            if time.monotonic() > until:
                raise CommandError(f"process {found.pid} still runs after {PATIENCE:.0f} s; see its terminal")
            time.sleep(0.1)
        self.stdout.write("stopped.")
