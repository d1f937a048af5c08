"""One connection of a guest for as long as it lasts, and how it comes to be denied."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from vm.egress.journal import Passage, Verdict
from vm.egress.peek import Claim
from vm.egress.policy import Address, Decision, Host
from vm.egress.splice import Side

_ORIGINAL_DST = 80

Original = Callable[[socket.socket], tuple[IPv4Address, int]]


def original_destination(sock: socket.socket) -> tuple[IPv4Address, int]:
    """Where a redirected connection wanted to go. OSError if it was not redirected."""
    _family, port, address = struct.unpack_from("!HH4s", sock.getsockopt(socket.SOL_IP, _ORIGINAL_DST, 16))
    return IPv4Address(address), port


class Denied(Exception):
    """It goes no further, by this decision."""

    def __init__(self, decision: Decision, verdict: Verdict = Verdict.DENIED) -> None:
        super().__init__(decision.sentence)
        self.decision = decision
        self.verdict = verdict


@dataclass(slots=True, eq=False)
class Connection:
    """Whom it is for, its two ends, and what became of it. `placeholders` are those that its interceptor replaces."""

    host: Host
    port: int
    guest: Side | None = None
    upstream: Side | None = None
    claim: Claim | None = None
    address: Address | None = None
    decision: Decision | None = None
    verdict: Verdict | None = None
    tls: bool = False
    placeholders: frozenset[str] | None = None  # None where no interceptor is on its way
    strayed: set[str | None] = field(default_factory=set)  # secrets whose placeholders were told of; None: of no secret
    began: float = field(default_factory=time.time)
    began_at: float = field(default_factory=time.monotonic)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    news: asyncio.Event = field(default_factory=asyncio.Event)  # for one that waits to be allowed

    def side_gone(self) -> None:
        """One end is no more; only when both are is the connection: the other may have bytes to deliver."""
        if all(side is None or side.closed for side in (self.guest, self.upstream)):
            self.ended.set()
            self.news.set()

    def passage(self) -> Passage:
        """What is written down of it when it is over."""
        decision = self.decision or Decision(False, "", "the client went away")
        return Passage(
            began=self.began,
            host=str(self.host),
            port=self.port,
            verdict=self.verdict or (Verdict.ALLOWED if decision.allowed else Verdict.FAILED),
            rule=decision.rule,
            detail=decision.sentence,
            sent=self.guest.counted if self.guest is not None else 0,
            received=self.upstream.counted if self.upstream is not None else 0,
            seconds=round(time.monotonic() - self.began_at, 3),
        )

    def part(self) -> None:
        """Let go of whom the guest was to talk to; its own end stays, with all that it said. Repeatable."""
        if self.guest is not None:
            self.guest.part()
        if self.upstream is not None:
            self.upstream.reset()
            self.upstream = None

    def reset(self) -> None:
        """End it so that both ends see an error. Repeatable."""
        for side in (self.guest, self.upstream):
            if side is not None:
                side.reset()


def always_refused(host: Host, port: int, what: str) -> Decision:
    """The decision about what no policy opens."""
    said = (
        f"{host}:{port} is refused: it is {what}. Only the administrator of this installation can open it, "
        "to sandboxes that have a list of what they may reach."
    )
    return Decision(False, "always refused", said)


def drop(sock: socket.socket) -> None:
    """Close it so that the other end sees an error."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
