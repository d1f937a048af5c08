"""`manage.py login-link`: prints a new one-time sign-in link."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from ide.env import env
from ide.management.as_service import ServiceCommand
from sandboxes.models import User
from sandboxes.services import accounts


class Command(ServiceCommand):
    """Makes a link for the administrator, or for the person named."""

    help = "Print a new sign-in link, good once and for 15 minutes."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Whose link; by default the oldest account's."""
        parser.add_argument("email", nargs="?", default="")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the link and nothing else, so that it can be piped."""
        users = User.objects.filter(is_active=True).order_by("pk")
        user = (users.filter(email=options["email"].lower()) if options["email"] else users).first()
        if user is None:
            raise CommandError(
                f"nobody has the address {options['email']!r} here" if options["email"] else "there is no account yet"
            )
        self.stdout.write(f"{env().origin}/login/{accounts.sign_in_link_create(user=user)}")
