"""Blocking calls: slow ones keep no others waiting, and one that is late goes on in its lane."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from vm.node.lanes import Lanes, TooSlow


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    made = Lanes(workers=1, slow=1)
    yield made
    made.close()


async def test_slow_work_keeps_no_other_waiting(lanes: Lanes) -> None:
    """Memory that is written to a slow disk, as many machines as it may be of."""
    done = threading.Event()
    saves = [asyncio.ensure_future(lanes.run(f"m{n}", done.wait, deadline=30, slow=True)) for n in range(3)]
    assert await lanes.run("another", lambda: "there", deadline=5) == "there"
    done.set()
    assert await asyncio.gather(*saves) == [True] * 3


async def test_what_is_late_goes_on_in_its_lane(lanes: Lanes) -> None:
    """Whoever waits is told in time; the next of that lane finds the work done."""
    done, seen = threading.Event(), []

    def work() -> None:
        done.wait()
        seen.append("work")

    with pytest.raises(TooSlow):
        await lanes.run("m", work, deadline=0.05, slow=True)
    following = asyncio.ensure_future(lanes.run("m", lambda: list(seen), deadline=30))
    await asyncio.sleep(0.05)
    assert not following.done()
    done.set()
    assert await following == ["work"]
