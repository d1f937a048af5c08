"""`manage.py limits`: shows what organizations may have and use, and sets it."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from ide.management.as_service import ServiceCommand
from sandboxes.errors import DomainError
from sandboxes.models import Organization
from sandboxes.services import limits

OPTIONS = {name.removeprefix("quota_").replace("_", "-"): name for name in limits.FIELDS}


class Command(ServiceCommand):
    """Show limits, or change those of one organization."""

    help = "Show each organization's limits and what of them is used; with ORG and options, set its limits."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """One option for each limit."""
        parser.add_argument("organization", nargs="?", default="", metavar="ORG", help="its short name")
        for option, name in OPTIONS.items():
            zero = "nothing may run" if name == "quota_concurrent" else "no limit"
            parser.add_argument(f"--{option}", type=int, metavar="N", dest=name, help=f"0: {zero}")
        parser.add_argument(
            "--default", action="append", choices=OPTIONS, default=[], help="go back to the installation's default"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Set what is asked for, then print the limits."""
        slug = options["organization"]
        changes = {name: options[name] for name in limits.FIELDS if options[name] is not None}
        changes |= {OPTIONS[option]: None for option in options["default"]}
        if changes and not slug:
            raise CommandError("say whose limits: manage.py limits ORG --concurrent 10")
        try:
            if changes:
                limits.limits_set(slug=slug, changes=changes)
        except DomainError as error:
            raise CommandError(error.message) from error
        found = Organization.objects.filter(slug=slug) if slug else Organization.objects.order_by("slug")
        if slug and not found:
            raise CommandError(f"there is no organization {slug!r}")
        for organization in found:
            self.stdout.write(f"{organization.slug} ({organization.name})")
            for line in limits.limits_shown(organization):
                own = "" if line.own else "  (default)"
                used = "" if line.used is None else f", {line.used} in use"
                self.stdout.write(f"  {line.what}: {line.limit}{used}{own}")
