"""The accounting of bytes under way stops, goes on and refuses where README.md says."""

from __future__ import annotations

import pytest

from ide.xterm_bridge.flow import GO_BELOW, INPUT_LIMIT, STOP_ABOVE, FlowError, InputFlow, OutputFlow


def test_output_stops_at_a_mebibyte_and_goes_on_below_a_quarter() -> None:
    """Hysteresis: an acknowledgement just below the stop mark does not start a trickle."""
    flow = OutputFlow(1000)
    flow.send(STOP_ABOVE)
    assert not flow.open
    assert flow.room == 0
    flow.acknowledge(1000 + STOP_ABOVE - GO_BELOW)
    assert not flow.open
    flow.acknowledge(1000 + STOP_ABOVE - GO_BELOW + 1)
    assert flow.open
    assert flow.room == STOP_ABOVE - GO_BELOW + 1


def test_output_never_exceeds_the_mark() -> None:
    flow = OutputFlow(0)
    while flow.room:
        flow.send(min(flow.room, 65_536))
    assert flow.sent == STOP_ABOVE


def test_acknowledging_the_future_is_refused() -> None:
    flow = OutputFlow(10)
    flow.send(5)
    with pytest.raises(FlowError):
        flow.acknowledge(16)


def test_a_late_acknowledgement_changes_nothing() -> None:
    flow = OutputFlow(0)
    flow.send(100)
    flow.acknowledge(90)
    flow.acknowledge(20)
    assert flow.acknowledged == 90


def test_input_beyond_the_limit_is_refused_and_counted_in_total() -> None:
    flow = InputFlow()
    flow.receive(INPUT_LIMIT)
    assert flow.write(10) == 10
    assert flow.write(5) == 15
    flow.receive(15)
    with pytest.raises(FlowError):
        flow.receive(1)
