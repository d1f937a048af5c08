"""Connections that nobody has decided about, which wait until a policy does or their time is up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from vm.egress.connection import Connection
from vm.egress.journal import Passage, Verdict
from vm.egress.policy import Decision

_MOST = 32  # that wait at a time


class Asking:
    """Those of one machine. `journal` is told of what waits, once for each host and port."""

    def __init__(self, patience: float, journal: Callable[[Passage], None]) -> None:
        self._patience = patience
        self._journal = journal
        self._waiting: dict[Connection, None] = {}  # the longest first

    def changed(self) -> None:
        """There is another policy."""
        for connection in self._waiting:
            connection.news.set()

    async def answered(
        self, connection: Connection, first: Decision, judge: Callable[[Connection], Decision]
    ) -> Decision:
        """The decision once `judge` has one, or nobody has answered in time."""
        host, port = connection.host, connection.port
        if len(self._waiting) >= _MOST and not self._give_way():
            said = f"{first.sentence} {_MOST} connections of it wait for an answer already."
            return Decision(False, first.rule, said)
        if not any((one.host, one.port) == (host, port) for one in self._waiting):
            said = f"{host}:{port} waits to be allowed: it is not on this sandbox's list of allowed hosts."
            asked = Passage(connection.began, str(host), port, Verdict.ASKED, "ask", said, 0, 0, self._patience)
            self._journal(asked)
        self._waiting[connection] = None
        try:
            async with asyncio.timeout(self._patience):
                while (decision := judge(connection)).ask and not connection.ended.is_set():
                    await connection.news.wait()
                    connection.news.clear()
        except TimeoutError:
            said = f"{first.sentence} Nobody allowed it within {self._patience:.0f} seconds."
            return Decision(False, first.rule, said)
        finally:
            self._waiting.pop(connection, None)
        return decision

    def _give_way(self) -> bool:
        """End one whose client has ended its side, to have its place.

        Most have gone for good. Nothing tells them from those that only wait for an answer, before one is sent.
        """
        for connection in self._waiting:
            if connection.guest is not None and connection.guest.ended:
                del self._waiting[connection]
                connection.reset()
                return True
        return False
