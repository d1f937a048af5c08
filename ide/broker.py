"""The embedded job queue: Celery's queue of files, made safe for a reader that looks while a message is being written.

kombu's own transport writes a message under its final name, and its reader takes what is there: an empty file then ends
the worker. Here a message gets its name when it is complete.
"""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any

from kombu.transport import filesystem

SCHEME = "atoll-files"
TRANSPORT = "ide.broker:Transport"


class Channel(filesystem.Channel):
    """kombu's channel with an atomic put."""

    def _put(self, queue: Any, message: Any, **kwargs: Any) -> None:  # type: ignore[override]
        folder = Path(self.data_folder_out)
        name = f"{round(time.monotonic() * 1000)}_{uuid.uuid4()}"
        fresh = folder / f"{name}.new"
        fresh.write_text(json.dumps(message))
        fresh.rename(folder / f"{name}.{queue}.msg")


class Transport(filesystem.Transport):
    """kombu's transport with that channel."""

    Channel = Channel
