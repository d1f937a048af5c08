"""The Celery app; its tasks live in sandboxes/tasks.py."""

from __future__ import annotations

from celery import Celery
from kombu.transport import TRANSPORT_ALIASES

from ide.broker import SCHEME, TRANSPORT

TRANSPORT_ALIASES[SCHEME] = TRANSPORT
app = Celery("atoll")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["sandboxes"])
