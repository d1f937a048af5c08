"""`manage.py worker`: runs background jobs and their timetable."""

from __future__ import annotations

import fcntl
import os
from typing import Any

from celery.signals import worker_ready
from django.core.management.base import BaseCommand

from ide.celery import app
from ide.env import env
from sandboxes.tasks import KINDS
from vm.host.confine import undumpable

SPARE = 2
"""Threads beside one for each kind of the timetable's tasks: for what is queued by itself."""


class Command(BaseCommand):
    """Wires Celery's worker and beat into one process."""

    help = "Run background jobs: reconciliation, deadlines, pruning."
    requires_system_checks: list[str] = []  # web makes them: they import all that answers requests
    requires_migrations_checks = True

    def handle(self, *args: Any, **options: Any) -> None:
        """Work until SIGTERM."""
        # It has opened secrets in its memory.
        undumpable()
        queue = env().data / "queue"
        if not env().redis_url:
            for folder in ("messages", "control"):
                (queue / folder).mkdir(parents=True, exist_ok=True)
        worker_ready.connect(_hold_lock)
        app.worker_main(
            [
                "worker",
                "--beat",
                f"--schedule={queue / 'beat'}",
                "--pool=threads",
                f"--concurrency={KINDS + SPARE}",
                "--without-gossip",
                "--without-mingle",
                "--without-heartbeat",
                "--loglevel=WARNING",
            ]
        )


def _hold_lock(**_sender: Any) -> None:
    """Tell the supervisor, for as long as this process lives; opened here, since beat is forked before."""
    fcntl.flock(
        os.open(env().worker_lock, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), fcntl.LOCK_EX | fcntl.LOCK_NB
    )
