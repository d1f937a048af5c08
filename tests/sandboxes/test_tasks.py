"""The timetable's tasks: one turn of each at a time."""

from __future__ import annotations

import threading

from sandboxes.tasks import turn


def test_a_turn_is_left_out_while_the_one_before_goes_on() -> None:
    """A slow one does not take a thread for each of its periods; afterwards it has its turns again."""
    begun, go_on = threading.Event(), threading.Event()
    turns: list[int] = []

    @turn("test_slow")
    def slow() -> None:
        turns.append(len(turns))
        begun.set()
        assert go_on.wait(10)

    first = threading.Thread(target=slow)
    first.start()
    assert begun.wait(10)
    slow()
    assert turns == [0]
    go_on.set()
    first.join()
    slow()
    assert turns == [0, 1]
