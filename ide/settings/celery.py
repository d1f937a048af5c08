"""Celery's settings: Redis where there is one, else a queue of files below the data root."""

from __future__ import annotations

from typing import Any

from ide.env import env

_ENV = env()
_QUEUE = _ENV.data / "queue"

CELERY_BROKER_URL = _ENV.redis_url or "atoll-files://"  # ide/broker.py
CELERY_BROKER_TRANSPORT_OPTIONS: dict[str, Any] = (
    {}
    if _ENV.redis_url
    else {
        "data_folder_in": str(_QUEUE / "messages"),
        "data_folder_out": str(_QUEUE / "messages"),
        "control_folder": str(_QUEUE / "control"),
        "polling_interval": 0.05,
        "store_processed": False,
    }
)
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TIMEZONE = "UTC"
# A turn that waited longer than its period is worthless: the next one does the same work.
CELERY_BEAT_SCHEDULE = {
    "reconcile": {"task": "sandboxes.reconcile", "schedule": 3.0, "options": {"expires": 6}},
    "deadlines": {"task": "sandboxes.deadlines", "schedule": 1.0, "options": {"expires": 3}},
    "usage": {"task": "sandboxes.usage", "schedule": 10.0, "options": {"expires": 20}},
    "volumes": {"task": "sandboxes.volumes", "schedule": 10.0, "options": {"expires": 20}},
    "checkpoints": {"task": "sandboxes.checkpoints", "schedule": 5.0, "options": {"expires": 10}},
    "egress": {"task": "sandboxes.egress", "schedule": 1.0, "options": {"expires": 2}},
    "egress-prune": {"task": "sandboxes.egress_prune", "schedule": 60.0, "options": {"expires": 60}},
    "spending": {"task": "sandboxes.spending", "schedule": 10.0, "options": {"expires": 20}},
    "prune": {"task": "sandboxes.prune", "schedule": 600.0, "options": {"expires": 600}},
}
