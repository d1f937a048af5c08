"""What the ends of a connection say first, waited for with a limit: whom a client means, and who speaks first."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from vm.egress.peek import Claim, Speech, Unreadable, is_http2, read_head, read_hello, speech
from vm.egress.policy import Host
from vm.egress.splice import Side

type Reader = Callable[[bytes | bytearray], Claim | None]
READERS: dict[int, Reader] = {443: read_hello, 80: read_head}
"""Ports on which a client must say whom it means."""
PEEKING = 10.0  # seconds a client has to say whom it talks to
_FIRST_WORD = 60.0  # seconds in which one end says something, where silence may hide something
_BY_SPEECH: dict[Speech, Reader] = {Speech.TLS: read_hello, Speech.HTTP: read_head}
_TLS = 0x16


async def said_by(guest: Side, reader: Reader, patience: float) -> Claim:
    """Whom a client says it talks to. Unreadable, also if it says nothing in time."""
    until = time.monotonic() + patience
    while (claim := reader(guest.held or b"")) is None:
        if not await guest.more(until - time.monotonic()):
            raise Unreadable("the client did not say in time whom it talks to")
    return claim


async def speaks_tls(guest: Side, patience: float) -> bool:
    """Whether a client begins with TLS."""
    until = time.monotonic() + patience
    while not guest.held and await guest.more(until - time.monotonic()):
        pass
    return guest.held is not None and guest.held[:1] == bytes([_TLS])


async def names_in_tls(guest: Side, host: Host, patience: float) -> bool:
    """Whether a client says in TLS that it means this host, so that it can be answered in that name."""
    with suppress(Unreadable):
        claim = await said_by(guest, read_hello, patience)
        return isinstance(claim.host, str) and claim.host == host
    return False


async def begun(guest: Side, upstream: Side, strict: Callable[[], bool]) -> Reader | None:
    """What reads what a client begins with on a port where it need not say whom it means; None where nothing does.

    That is so where the server speaks first, which no server of TLS or HTTP does, and for all other protocols. Nobody
    is held up for it: what may yet become a request is passed on as it comes, but for the end of it. Only where it is
    `strict` nothing is passed on, and silence is Unreadable.
    """
    until = time.monotonic() + _FIRST_WORD
    while not guest.held:
        patient = bool(upstream.counted) or not strict()
        if not await guest.more(None if patient else until - time.monotonic()):
            if guest.ended:
                return None
            if not upstream.counted:
                raise Unreadable("neither the client nor the server said anything in time")
    if upstream.counted:
        return None
    until = time.monotonic() + PEEKING
    while (said := speech(guest.held)) is None:
        if not (held_up := strict()):
            guest.let_pass()
        if not await guest.more(until - time.monotonic() if held_up else None):
            if held_up:
                raise Unreadable("the client did not say in time what it speaks")
            return None
    if said is Speech.HTTP and not strict():
        # Git's own protocol has a NUL there, and no end of a line before it is answered, which no server of HTTP does
        answered = upstream.counted and 0 in guest.held.lstrip().partition(b"\n")[0]
        if answered or is_http2(guest.held):
            return None
    return _BY_SPEECH.get(said)
