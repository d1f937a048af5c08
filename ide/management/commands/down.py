"""`manage.py down`: stops what `manage.py up` runs, in order, and waits for it."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ide.env import env
from ide.installation import holder

PATIENCE = 120.0  # seconds


class Command(BaseCommand):
    """Stop the running installation."""

    help = "Stop the installation that runs on this machine: sandboxes first, then every process."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        """Ask it to stop, also while it still prepares the host, and wait until it has."""
        try:
            while (pid := holder(env())) == 0:
                time.sleep(0.1)
            if pid is None:
                self.stdout.write("Atoll does not run here.")
                return
            os.kill(pid, signal.SIGTERM)
        except PermissionError as error:
            raise CommandError("this needs root: use sudo") from error
        until = time.monotonic() + PATIENCE
        while holder(env()) == pid:
            if time.monotonic() > until:
                raise CommandError(f"process {pid} still runs after {PATIENCE:.0f} s; see its terminal")
            time.sleep(0.1)
        self.stdout.write("stopped.")
