"""`manage.py worker`: runs background jobs and their timetable."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from ide.celery import app
from ide.env import env
from vm.host.confine import undumpable


class Command(BaseCommand):
    """Wires Celery's worker and beat into one process."""

    help = "Run background jobs: reconciliation, deadlines, pruning."
    requires_migrations_checks = True

    def handle(self, *args: Any, **options: Any) -> None:
        """Work until SIGTERM."""
        # It has opened secrets in its memory.
        undumpable()
        queue = env().data / "queue"
        if not env().redis_url:
            for folder in ("messages", "control"):
                (queue / folder).mkdir(parents=True, exist_ok=True)
        app.worker_main(
            [
                "worker",
                "--beat",
                f"--schedule={queue / 'beat'}",
                "--pool=threads",
                "--concurrency=4",
                "--without-gossip",
                "--without-mingle",
                "--without-heartbeat",
                "--loglevel=WARNING",
            ]
        )
