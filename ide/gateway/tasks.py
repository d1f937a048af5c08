"""Work beside other work, whose failure is for whoever looks at it and not for a log."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


def beside[T](work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Run `work` beside the caller, who sees to it that it ends."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


async def ended(*tasks: asyncio.Task[Any]) -> None:
    """Cancel them, and wait until that has come to its end."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


async def first_of(*works: Coroutine[Any, Any, Any]) -> None:
    """Run them until the first ends, and raise what that one did; the others are cancelled."""
    tasks = [beside(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await ended(*tasks)
