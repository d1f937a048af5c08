"""`manage.py up`: runs the whole installation in the foreground."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ide.env import env
from ide.installation import CannotStart, up
from vm.host.provision import Users


class Command(BaseCommand):
    """Prepare the host, start node, web and worker, and keep them running."""

    help = "Run the whole installation on this machine in the foreground; Ctrl-C stops it in order."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        """Run until stopped."""
        try:
            up(env(), users=Users(), say=lambda line: self.stdout.write(line))
        except CannotStart as error:
            raise CommandError(str(error)) from error
        except KeyboardInterrupt:
            raise CommandError("stopped before it was ready; run it again", returncode=130) from None
