"""Runs blocking database work in a few threads of its own, so that the event loop never waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from django.db import close_old_connections, connection

THREADS = 4
"""SQLite has one writer anyway. Each thread keeps one connection."""
_KEPT = 60  # seconds, then the next call makes a new one: that costs more than what most of them are for


def _keep() -> None:
    # Its own copy: pages and commands, whose threads end with their work, go on with the settings' value. PostgreSQL
    # has one that says how long.
    if connection.vendor == "sqlite":
        connection.settings_dict = {**connection.settings_dict, "CONN_MAX_AGE": _KEPT}


executor = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="database", initializer=_keep)


def _call[R](work: Callable[[], R]) -> R:
    close_old_connections()
    try:
        return work()
    finally:
        close_old_connections()


async def in_thread[**P, R](work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What `work(*args, **kwargs)` returns or raises; a cancelled caller does not stop it."""
    return await asyncio.get_running_loop().run_in_executor(executor, partial(_call, partial(work, *args, **kwargs)))
