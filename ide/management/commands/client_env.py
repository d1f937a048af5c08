"""`manage.py client_env` (`make -s env`): the exports that point an SDK at the running installation."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ide.env import env
from ide.installation import exports, running


class Command(BaseCommand):
    """Print the export lines for a shell."""

    help = "Print the export lines a client of the running installation needs; fails while none runs."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        """Print, or fail with what to do."""
        settings = env()
        try:
            found = running(settings)
        except PermissionError as error:
            raise CommandError("the token is the administrator's: use sudo, or make one on the tokens page") from error
        if found is None:
            raise CommandError('Atoll does not run here: start it with "make up"')
        self.stdout.write("\n".join(exports(settings, found.url, found.token)))
