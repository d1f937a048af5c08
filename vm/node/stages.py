"""Notes how long each stage of a start takes, one after the other or side by side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from vm.node.records import Record


async def together(*steps: Coroutine[Any, Any, None]) -> None:
    """Take steps side by side; all of them have ended when the first failure is raised."""
    results = await asyncio.gather(*steps, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


@contextmanager
def side_by_side(record: Record, *names: str) -> Iterator[None]:
    """Stages that overlap: each keeps only what it took beyond those before it, so that a sum of stages is true."""
    began = time.monotonic()
    yield
    left = time.monotonic() - began
    for name in names:
        if name in record.stages:
            record.stages[name] = round(min(record.stages[name], left), 4)
            left = max(0.0, left - record.stages[name])


@contextmanager
def timed(record: Record, name: str) -> Iterator[None]:
    """Note how long this stage took, in seconds, also of one that failed."""
    began = time.monotonic()
    try:
        yield
    finally:
        record.stages[name] = round(time.monotonic() - began, 4)
