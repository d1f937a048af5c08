"""Runs blocking database work in a few threads of its own, so that the event loop never waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from django.db import close_old_connections

THREADS = 4
"""SQLite has one writer anyway; on PostgreSQL each thread keeps one connection."""
executor = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="database")


def _call[R](work: Callable[[], R]) -> R:
    close_old_connections()
    try:
        return work()
    finally:
        close_old_connections()


async def in_thread[**P, R](work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What `work(*args, **kwargs)` returns or raises; a cancelled caller does not stop it."""
    return await asyncio.get_running_loop().run_in_executor(executor, partial(_call, partial(work, *args, **kwargs)))
