"""Registers the domain with Django."""

from __future__ import annotations

from django.apps import AppConfig


class SandboxesConfig(AppConfig):
    """Organizations, members, tokens and sandboxes."""

    name = "sandboxes"
    default_auto_field = "django.db.models.BigAutoField"
