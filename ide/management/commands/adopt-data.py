"""`manage.py adopt-data`: goes on with the data directory that is there, where the one from before is lost for good."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError

from ide.management.as_service import ServiceCommand
from sandboxes.errors import DomainError
from sandboxes.services.host_data import host_data_adopt


class Command(ServiceCommand):
    """Take the node's data directory for the right one."""

    help = "Go on with the data directory that is there: machines that it does not have are lost then."

    def handle(self, *args: Any, **options: Any) -> None:
        """Adopt it, or say that there is nothing to adopt."""
        try:
            host_data_adopt()
        except DomainError as error:
            raise CommandError(error.message) from error
        self.stdout.write("adopted: within seconds each workspace whose machine is not there says so")
