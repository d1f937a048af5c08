"""Large things share a bounded memory, each in its turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ide.budget import Budget


class Holder:
    """Asks for a part, and holds it until told otherwise."""

    def __init__(self, budget: Budget, size: int) -> None:
        self.holds = False
        self.enough = asyncio.Event()
        self.task = asyncio.ensure_future(self._hold(budget, size))

    async def _hold(self, budget: Budget, size: int) -> None:
        async with budget.of(size):
            self.holds = True
            await self.enough.wait()
        self.holds = False


@asynccontextmanager
async def holders(budget: Budget, *sizes: int) -> AsyncIterator[list[Holder]]:
    made = [Holder(budget, size) for size in sizes]
    await turns()
    yield made
    for holder in made:
        holder.enough.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*(holder.task for holder in made), return_exceptions=True)


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_no_more_than_there_is_is_held() -> None:
    """What does not fit waits, and gets its part when another gives his back."""
    async with holders(Budget(10), 6, 4, 3) as (first, second, third):
        assert (first.holds, second.holds, third.holds) == (True, True, False)
        second.enough.set()
        await turns()
        assert third.holds


async def test_a_large_one_is_not_passed_by_small_ones() -> None:
    async with holders(Budget(10), 6, 8, 1) as (first, large, small):
        assert (large.holds, small.holds) == (False, False)
        first.enough.set()
        await turns()
        assert (large.holds, small.holds) == (True, True)


async def test_one_larger_than_all_is_served_alone() -> None:
    async with holders(Budget(10), 1, 50) as (first, huge):
        assert not huge.holds
        first.enough.set()
        await turns()
        assert huge.holds


async def test_whoever_gives_up_waiting_holds_nobody_up() -> None:
    """Also where his part is granted in the very moment in which he gives up."""
    async with holders(Budget(10), 10, 10, 10) as (first, second, third):
        second.task.cancel()
        first.enough.set()
        await turns()
        assert third.holds
    async with holders(Budget(10), 10, 10, 10) as (first, second, third):
        first.enough.set()
        while not first.task.done():
            await asyncio.sleep(0)
        second.task.cancel()  # it was granted its part just now
        await turns()
        assert third.holds


async def test_a_failure_gives_its_part_back() -> None:
    budget = Budget(10)
    with pytest.raises(ValueError, match="inside"):
        async with budget.of(10):
            raise ValueError("inside")
    async with asyncio.timeout(1), budget.of(10):
        pass
