"""`manage.py disk`: shows what the installation keeps on its disks, and removes what nothing needs."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ide.env import env
from vm.storage import usage


class Command(BaseCommand):
    """Survey, and with --clean remove the waste."""

    help = "Show disk use; --clean removes images, trees and logs that nothing needs any more."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Whether to remove."""
        parser.add_argument("--clean", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print one line for each thing kept."""
        try:
            found = usage.survey(data=env().data, image_cache=env().image_cache)
            for kept in found:
                self.stdout.write(
                    f"{_size(kept.size):>10}  {kept.what}{f' ({kept.waste})' * bool(kept.waste)}: {kept.path}"
                )
            waste = [kept for kept in found if kept.waste]
            if options["clean"]:
                self.stdout.write(f"removed {_size(usage.remove(waste))}")
            elif waste:
                self.stdout.write(f'"make disk-clean" would free {_size(sum(kept.size for kept in waste))}')
        except OSError as error:
            raise CommandError(f"{error} (this needs root: use sudo)") from error


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count < 2**30 else f"{count / 2**30:.2f} GiB"
