"""Commands that open the database: run by root, they become the service user first."""

from __future__ import annotations

import os
from pathlib import Path

from django.core.management.base import BaseCommand

from ide.env import env
from ide.installation import CHECKOUT, as_service
from vm.host.provision import Users


class ServiceCommand(BaseCommand):
    """A command that root may call, on a database that is the service user's.

    SQLite's side files would belong to root otherwise and shut the web process out.
    """

    def run_from_argv(self, argv: list[str]) -> None:
        """Run, as the service user where the database is his."""
        users = Users()
        if os.geteuid() == 0 and is_of_service(env().data / "db", users.service):
            os.chdir(CHECKOUT)
            command = as_service(users, *argv[1:])
            os.execv(command[0], command)  # noqa: S606 (no shell is wanted)
        super().run_from_argv(argv)


def is_of_service(place: Path, user: str) -> bool:
    """Whether the database below there is the service user's."""
    try:
        return place.owner() == user
    except (FileNotFoundError, KeyError):
        return False
