"""`manage.py web`: serves pages, REST and WebSockets."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from ide.env import env
from vm.host.confine import undumpable


class Command(BaseCommand):
    """Wires the ASGI application to its server."""

    help = "Serve pages, REST, the SDK's sockets and the IDE's sockets."
    requires_migrations_checks = True

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Bind address and port; both default to the settings."""
        parser.add_argument("--bind", default=env().bind)
        parser.add_argument("--port", type=int, default=env().port)

    def handle(self, *args: Any, **options: Any) -> None:
        """Serve until SIGTERM or SIGINT."""
        # It has opened secrets in its memory.
        undumpable()
        # The server installs its event loop when it is imported, which no other command must do.
        from ide.asgi import application
        from ide.server import serve

        serve(application, bind=options["bind"], port=options["port"])
