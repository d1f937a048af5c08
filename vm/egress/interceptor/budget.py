"""How many bytes an interceptor holds of requests and answers at a time: of one machine's, and of all. Pure."""

from __future__ import annotations

from collections import Counter


class Budget:
    """Bytes that may be held; what counts in it counts `within` another as well."""

    def __init__(self, most: int, within: Budget | None = None) -> None:
        self.held = 0
        self._most = most
        self._within = within

    def take(self, count: int) -> bool:
        """Whether there was room for so many more."""
        if self.held + count > self._most or (self._within is not None and not self._within.take(count)):
            return False
        self.held += count
        return True

    def give(self, count: int) -> None:
        """Have room for them again."""
        self.held -= count
        if self._within is not None:
            self._within.give(count)


class Held:
    """What one connection holds, each exchange of it until it is over."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._counts: Counter[object] = Counter()
        self._closed = False

    def take(self, exchange: object, count: int) -> bool:
        """Whether there was room for so many more; there is none once it is closed."""
        if self._closed or not self._budget.take(count):
            return False
        self._counts[exchange] += count
        return True

    def keep(self, exchange: object, count: int) -> bool:
        """Have it hold so many, more or fewer than before; whether there was room."""
        more = count - self._counts[exchange]
        if more > 0 or self._closed:
            return self.take(exchange, more)
        self._counts[exchange] = count
        self._budget.give(-more)
        return True

    def give(self, exchange: object) -> None:
        """Count nothing for that one any more. Repeatable."""
        self._budget.give(self._counts.pop(exchange, 0))

    def close(self) -> None:
        """Count nothing any more. Repeatable."""
        self._closed = True
        self._budget.give(self._counts.total())
        self._counts.clear()


ALL = Budget(2**28)
"""What one process may hold."""
OF_MACHINE = 2**25
