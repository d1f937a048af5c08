"""`manage.py install`: database, administrator and token of an installation; a step of `manage.py up`."""

from __future__ import annotations

import json
import sys
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from ide.env import env
from sandboxes.errors import InvalidToken
from sandboxes.models import Membership
from sandboxes.services import accounts, tokens

ADMINISTRATOR = "admin@localhost"
ORGANIZATION = "home"


class Command(BaseCommand):
    """Reads `{"token"}` on standard input and prints one line of JSON: `{"link", "token", "changes"}`.

    Both secrets travel on pipes only, to the supervisor, which shows them to the person who started it.
    """

    help = "Prepare the database, the first administrator and his token. Changes nothing that is there already."
    requires_system_checks: list[str] = []  # web makes them: they import all that answers requests

    def handle(self, *args: Any, **options: Any) -> None:
        """Do what is missing, and say what that was."""
        known = json.load(sys.stdin)["token"]
        changes = []
        executor = MigrationExecutor(connection)
        if executor.migration_plan(executor.loader.graph.leaf_nodes()):
            call_command("migrate", interactive=False, verbosity=0)
            changes.append("the database is up to date now")
        user, organization = accounts.installation_prepare(email=ADMINISTRATOR, organization=ORGANIZATION)
        token = known if known and _valid(known) else ""
        if not token:
            owner = accounts.actor_of(
                user=user, membership=Membership.objects.get(user=user, organization=organization)
            )
            _row, token = tokens.token_create(actor=owner, name="administrator, made by make up")
            changes.append(f"made an API token for {user.email}")
        link = f"{env().origin}/login/{accounts.sign_in_link_create(user=user)}"
        self.stdout.write(json.dumps({"link": link, "token": token, "changes": changes}))


def _valid(secret: str) -> bool:
    try:
        tokens.token_actor(secret=secret)
    except InvalidToken:
        return False
    return True
