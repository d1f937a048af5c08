"""Registers the delivery ring with Django and loads Celery."""

from __future__ import annotations

from django.apps import AppConfig


class IdeConfig(AppConfig):
    """The front doors: pages, REST, the SDK's sockets, the IDE's sockets."""

    name = "ide"

    def ready(self) -> None:
        """Make the Celery app the current one, so that tasks find it."""
        import ide.celery  # noqa: F401
