"""Counts terminal bytes under way to a page and from it, and says when to wait; does no I/O."""

from __future__ import annotations

STOP_ABOVE = 1_048_576
GO_BELOW = 262_144
INPUT_LIMIT = 1_048_576


class FlowError(Exception):
    """The page broke the rules; end its connection."""


class OutputFlow:
    """Bytes sent and not yet acknowledged, as absolute offsets; `open` says whether more may be sent."""

    def __init__(self, offset: int) -> None:
        self.sent = offset
        self.acknowledged = offset
        self.open = True

    @property
    def room(self) -> int:
        """Bytes that may be sent now; 0 while waiting for acknowledgements."""
        return STOP_ABOVE - (self.sent - self.acknowledged) if self.open else 0

    def send(self, count: int) -> None:
        """Note `count` bytes sent; closes at STOP_ABOVE unacknowledged."""
        self.sent += count
        if self.sent - self.acknowledged >= STOP_ABOVE:
            self.open = False

    def acknowledge(self, offset: int) -> None:
        """Note that all before `offset` was drawn; opens again below GO_BELOW. FlowError beyond what was sent."""
        if offset > self.sent:
            raise FlowError("acknowledged more than was sent")
        # A late message of an earlier place changes nothing.
        self.acknowledged = max(self.acknowledged, offset)
        if self.sent - self.acknowledged < GO_BELOW:
            self.open = True


class InputFlow:
    """Bytes taken from the page and not yet written to the terminal: bounded, whatever the page does."""

    def __init__(self) -> None:
        self.received = 0
        self.written = 0

    def receive(self, count: int) -> None:
        """Note `count` bytes from the page. FlowError when it does not wait for their being taken."""
        self.received += count
        if self.received - self.written > INPUT_LIMIT:
            raise FlowError("sent more input than the terminal takes")

    def write(self, count: int) -> int:
        """Note `count` bytes taken by the terminal; returns the total to report to the page."""
        self.written += count
        return self.written
