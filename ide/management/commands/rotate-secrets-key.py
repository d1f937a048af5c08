"""`manage.py rotate-secrets-key`: seals every secret with a new key, and does away with the old one."""

from __future__ import annotations

import fcntl
import os
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ide.env import env
from ide.installation import CHECKOUT, as_service
from ide.management.as_service import is_of_service
from sandboxes.errors import SecretsLocked
from sandboxes.services.secrets import secrets_reseal
from vm.host.provision import Users, key_add, keys_retire
from vm.host.run import CommandFailed, run


class Command(BaseCommand):
    """Writes the key file as who owns it, and touches the database as the service user."""

    help = "Seal all secrets with a new key; nothing has to be stopped. What was interrupted goes on when run again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The part that needs the database."""
        parser.add_argument("--reseal", action="store_true", help="only seal with the key that is the first already")

    def handle(self, *args: Any, **options: Any) -> None:
        """New key first, then all rows, and only then the old key goes."""
        if options["reseal"]:
            self.stdout.write(str(self._here()))
            return
        path = env().secrets_key
        try:
            with _alone(path.parent):
                key_add(path)
                count = self._reseal()
                keys_retire(path)
        except OSError as error:
            raise CommandError(f"{path}: {error.strerror or error}; this needs whoever owns that file") from error
        self.stdout.write(f"secrets sealed with the new key: {count}")

    def _reseal(self) -> int:
        users = Users()
        if os.geteuid() != 0 or not is_of_service(env().data / "db", users.service):
            return self._here()
        try:
            command = as_service(users, "rotate-secrets-key", "--reseal")
            return int(run(command, cwd=CHECKOUT, timeout=3600).stdout)
        except CommandFailed as error:
            raise CommandError(error.why) from error

    def _here(self) -> int:
        try:
            return secrets_reseal()
        except SecretsLocked as error:
            raise CommandError(f"{error.message}. The old key is kept: run this again after that.") from error


@contextmanager
def _alone(keys: Path) -> Iterator[None]:
    """Two at a time would each take the other's new key for the old one."""
    handle = os.open(keys, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
