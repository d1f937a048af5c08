"""The gate of one machine: takes every TCP connection of the guest, decides, and passes it on or says why not.

Which listener accepted says whose connection it is; where it wanted to go is the kernel's word, never the guest's.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from vm.background import spawn
from vm.egress.journal import Passage, Verdict
from vm.egress.peek import Claim, Unreadable, looks_like_http, read_head, read_hello
from vm.egress.policy import Address, Decision, Host, Policy
from vm.egress.refused import Refusals
from vm.egress.resolver import VIRTUAL, VirtualNames
from vm.egress.splice import Side
from vm.egress.upstream import NotFound, Upstream

log = logging.getLogger("atoll.egress")

MAX_CONNECTIONS = 1024
_PEEKING = 10.0  # seconds a client has to say whom it talks to
_EXPLAINING = 0.5  # seconds in which a client that is denied may show that it speaks HTTP
_LEAVING = 2.0  # seconds in which it reads what it was told
_IDLE = 3600.0
_LOOK = 30.0
_PATIENCE = 60.0  # seconds that a connection waits to be allowed, where somebody wants to be asked
_ASKED = 32  # that wait so at a time
_ADDRESSES = 4  # of a host, that are tried
_LOOKUPS = 4  # at a time, for one machine
_AT_ONCE = 32  # accepted in one turn of the loop: others have connections too
_ORIGINAL_DST = 80
_READERS = {443: read_hello, 80: read_head}

Original = Callable[[socket.socket], tuple[IPv4Address, int]]


def original_destination(sock: socket.socket) -> tuple[IPv4Address, int]:
    """Where a redirected connection wanted to go. OSError if it was not redirected."""
    _family, port, address = struct.unpack_from("!HH4s", sock.getsockopt(socket.SOL_IP, _ORIGINAL_DST, 16))
    return IPv4Address(address), port


class _Denied(Exception):
    def __init__(self, decision: Decision, verdict: Verdict = Verdict.DENIED) -> None:
        super().__init__(decision.sentence)
        self.decision = decision
        self.verdict = verdict


@dataclass(slots=True, eq=False)
class _Connection:
    """One connection of the guest, for as long as it lasts."""

    host: Host
    port: int
    guest: Side | None = None
    upstream: Side | None = None
    claim: Claim | None = None
    address: Address | None = None
    decision: Decision | None = None
    verdict: Verdict | None = None
    began: float = field(default_factory=time.time)
    began_at: float = field(default_factory=time.monotonic)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    news: asyncio.Event = field(default_factory=asyncio.Event)  # for one that waits to be allowed

    def side_gone(self) -> None:
        """One end is no more; only when both are is the connection: the other may have bytes to deliver."""
        if all(side is None or side.closed for side in (self.guest, self.upstream)):
            self.ended.set()
            self.news.set()

    def reset(self) -> None:
        """End it so that both ends see an error. Repeatable."""
        for side in (self.guest, self.upstream):
            if side is not None:
                side.reset()


class Gate:
    """Serves one listener from `open` to `close`. `journal` is told of each connection when it is over."""

    def __init__(
        self,
        listener: socket.socket,
        *,
        policy: Policy,
        names: VirtualNames,
        refusals: Refusals,
        upstream: Upstream,
        journal: Callable[[Passage], None],
        limit: int = MAX_CONNECTIONS,
        patience: float = _PATIENCE,
        original: Original = original_destination,
    ) -> None:
        self._listener = listener
        self._policy = policy
        self._names = names
        self._refusals = refusals
        self._upstream = upstream
        self._journal = journal
        self._limit = limit
        self._patience = patience
        self._asked: set[_Connection] = set()
        self._original = original
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lookups = asyncio.Semaphore(_LOOKUPS)
        self._told_full = -1e9
        self._timer: asyncio.TimerHandle | None = None
        self._open = False

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._connections)

    def open(self) -> None:
        """Begin to accept."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        self._listener.listen(512)
        self._open = True
        loop.add_reader(self._listener, self._accept)
        self._timer = loop.call_later(_LOOK, self._look)

    def close(self) -> None:
        """Accept no more, and reset every connection. Repeatable."""
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._listener)
        if self._timer is not None:
            self._timer.cancel()
        self._listener.close()
        for task in list(self._tasks):
            task.cancel()
        for connection in list(self._connections):
            connection.reset()

    def change(self, policy: Policy) -> None:
        """Let another policy hold, for the connections that there are already as well."""
        self._policy = policy
        for connection in self._asked:
            connection.news.set()
        for connection in list(self._connections):
            if connection.decision is not None and connection.verdict is None:
                decision = self._judged(connection)
                if not decision.allowed:
                    connection.decision, connection.verdict = decision, Verdict.CUT
                    connection.reset()

    # -- accepting

    def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(_AT_ONCE):
            try:
                sock, _peer = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.error("no connection can be accepted now: %s", error)
                    loop.remove_reader(self._listener)
                    loop.call_later(1.0, self._accept_again)
                return
            try:
                sock.setblocking(False)
                address, port = self._original(sock)
            except OSError:
                _drop(sock)
                continue
            if len(self._connections) >= self._limit:
                _drop(sock)
                self._full(address, port)
                continue
            name = self._names.name_of(address) if address in VIRTUAL else None
            connection = _Connection(name or address, port)
            self._connections.add(connection)
            task = spawn(self._serve(connection, sock), name="egress connection")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _accept_again(self) -> None:
        if self._open:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _full(self, address: IPv4Address, port: int) -> None:
        # Once a second is often enough to be told
        if time.monotonic() - self._told_full >= 1:
            self._told_full = time.monotonic()
            host = str((self._names.name_of(address) if address in VIRTUAL else None) or address)
            detail = f"{host}:{port} was reset: this sandbox has {self._limit} connections already."
            self._journal(Passage(time.time(), host, port, Verdict.DENIED, "connection limit", detail, 0, 0, 0.0))

    # -- one connection

    async def _serve(self, connection: _Connection, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        connection.guest = guest = Side(sock, connection.side_gone)
        try:
            await loop.connect_accepted_socket(lambda: guest, sock)
            try:
                await self._pass(connection, guest)
                await connection.ended.wait()
            except _Denied as denied:
                connection.decision = denied.decision
                connection.verdict = denied.verdict
                await self._explain(connection, guest)
        finally:
            if guest.transport is None:
                sock.close()
            connection.reset()
            self._connections.discard(connection)
            self._write_down(connection)

    async def _pass(self, connection: _Connection, guest: Side) -> None:
        """Join the guest to whom it wants to talk to. _Denied."""
        first = self._judge_dialled(connection)
        if first.ask:
            first = await self._answered(connection, first)
        if not first.allowed and not first.open:
            raise _Denied(first)
        connection.claim = await self._claimed(connection, guest, first)
        sock = await self._dialled(connection)
        connection.upstream = upstream = Side(sock, connection.side_gone)
        try:
            await asyncio.get_running_loop().create_connection(lambda: upstream, sock=sock)
        except BaseException:
            sock.close()
            raise
        decision = self._judged(connection)
        if not decision.allowed:  # it was changed meanwhile
            raise _Denied(decision)
        connection.decision = decision
        if guest.closed or upstream.closed:
            connection.reset()
        else:
            guest.join(upstream)

    def _judge_dialled(self, connection: _Connection) -> Decision:
        host, port = connection.host, connection.port
        if isinstance(host, str):
            what = self._refusals.of_name(host, port)
        elif host in VIRTUAL and self._refusals.of_address(host, port) is not None:
            return Decision(False, "unknown address", f"{host}:{port} was never the address of a name.")
        else:
            what = self._refusals.of_address(host, port)
        if what is not None:
            return _always_refused(host, port, what)
        return self._policy.judge(host, port)

    async def _answered(self, connection: _Connection, first: Decision) -> Decision:
        """The decision once a policy has one, or nobody has answered in time."""
        host, port = connection.host, connection.port
        if len(self._asked) >= _ASKED:
            said = f"{first.sentence} {_ASKED} connections of it wait for an answer already."
            return Decision(False, first.rule, said)
        if not any((one.host, one.port) == (host, port) for one in self._asked):
            said = f"{host}:{port} waits to be allowed: it is not on this sandbox's list of allowed hosts."
            asked = Passage(connection.began, str(host), port, Verdict.ASKED, "ask", said, 0, 0, self._patience)
            self._journal(asked)
        self._asked.add(connection)
        try:
            async with asyncio.timeout(self._patience):
                while (decision := self._judge_dialled(connection)).ask and not connection.ended.is_set():
                    await connection.news.wait()
                    connection.news.clear()
        except TimeoutError:
            said = f"{first.sentence} Nobody allowed it within {self._patience:.0f} seconds."
            return Decision(False, first.rule, said)
        finally:
            self._asked.discard(connection)
        return decision

    async def _claimed(self, connection: _Connection, guest: Side, first: Decision) -> Claim | None:
        """What the client says itself, where it must say something. _Denied if it says nothing, or something else."""
        host, port = connection.host, connection.port
        reader = _READERS.get(port)
        if reader is None:
            return None
        until = time.monotonic() + _PEEKING
        try:
            while (claim := reader(guest.held or b"")) is None:
                if not await guest.more(until - time.monotonic()):
                    raise Unreadable("the client did not say in time whom it talks to")
        except Unreadable as error:
            raise _Denied(Decision(False, "unreadable", f"{host}:{port} is denied: {error}.")) from error
        if claim.host is None:
            # Nobody names an address in TLS: a rule for that address is needed, not only none against it
            if not isinstance(host, str) and any(rule.matches(host, port) for rule in self._policy.allow or ()):
                return claim
            raise _Denied(Decision(False, "no SNI", f"{host}:{port} is denied: TLS without a server name."))
        if isinstance(host, str) or not isinstance(claim.host, str):
            agrees = claim.host == host
        else:
            agrees = True  # the address was asked for and is judged; a name that is denied is below
            what = self._refusals.of_name(claim.host, port)
            if what is not None:
                raise _Denied(_always_refused(claim.host, port, what))
            if any(rule.matches(claim.host, port) for rule in self._policy.deny):
                raise _Denied(self._policy.judge(claim.host, port))
        if not agrees or claim.port not in (None, port):
            said = f"{host}:{port} is denied: the client asked there for {claim.host}."
            raise _Denied(Decision(False, "host mismatch", said))
        return claim

    async def _dialled(self, connection: _Connection) -> socket.socket:
        """A socket to an address that was checked. _Denied."""
        host, port = connection.host, connection.port
        if isinstance(host, str):
            try:
                async with self._lookups:
                    addresses = await self._upstream.resolve(host)
            except NotFound as error:
                raise _Denied(Decision(False, "not found", f"{error}."), Verdict.FAILED) from error
        else:
            addresses = [host]
        failure: Exception | None = None
        denied: Decision | None = None
        for address in addresses[:_ADDRESSES]:
            connection.address = address
            decision = self._judged(connection)
            if not decision.allowed:
                denied = decision
                continue
            try:
                return await self._upstream.dial(address, port)
            except (OSError, TimeoutError) as error:
                failure = error
        if failure is None and denied is not None:
            raise _Denied(denied)
        why = getattr(failure, "strerror", None) or "no answer in time"
        raise _Denied(Decision(False, "unreachable", f"{host}:{port} cannot be reached: {why}."), Verdict.FAILED)

    def _judged(self, connection: _Connection) -> Decision:
        """The decision about a connection with all that is known of it by now."""
        first = self._judge_dialled(connection)
        host, port, address = connection.host, connection.port, connection.address
        if address is None or not isinstance(host, str) or not (first.allowed or first.open):
            claimed = connection.claim.host if connection.claim is not None else None
            if first.allowed and isinstance(claimed, str) and not isinstance(host, str):
                return _first_denial(self._policy, claimed, port) or first
            return first
        what = self._refusals.of_address(address, port, host)
        if what is not None:
            return _always_refused(host, port, f"{what}: it resolves to {address}")
        return self._policy.judge(host, port, address)

    async def _explain(self, connection: _Connection, guest: Side) -> None:
        """Tell the guest why not, if it can be told."""
        decision = connection.decision
        if decision is None or guest.closed:
            return
        if connection.port != 443:
            until = time.monotonic() + _EXPLAINING
            while not guest.held and await guest.more(until - time.monotonic()):
                pass
            if guest.held and looks_like_http(guest.held):
                guest.say(_page(connection.host, connection.port, decision, connection.verdict))
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LEAVING):
                        while await guest.more(_LEAVING):
                            pass
                guest.close()
                return
        guest.reset()

    def _write_down(self, connection: _Connection) -> None:
        decision = connection.decision or Decision(False, "", "the client went away")
        verdict = connection.verdict or (Verdict.ALLOWED if decision.allowed else Verdict.FAILED)
        guest, upstream = connection.guest, connection.upstream
        self._journal(
            Passage(
                began=connection.began,
                host=str(connection.host),
                port=connection.port,
                verdict=verdict,
                rule=decision.rule,
                detail=decision.sentence,
                sent=guest.counted if guest is not None else 0,
                received=upstream.counted if upstream is not None else 0,
                seconds=round(time.monotonic() - connection.began_at, 3),
            )
        )

    def _look(self) -> None:
        """Reset what nobody has used for an hour."""
        self._timer = asyncio.get_running_loop().call_later(_LOOK, self._look)
        before = time.monotonic() - _IDLE
        for connection in list(self._connections):
            guest, upstream = connection.guest, connection.upstream
            if guest is not None and upstream is not None and max(guest.touched, upstream.touched) < before:
                connection.reset()


def _first_denial(policy: Policy, host: Host, port: int) -> Decision | None:
    return policy.judge(host, port) if any(rule.matches(host, port) for rule in policy.deny) else None


def _always_refused(host: Host, port: int, what: str) -> Decision:
    said = f"{host}:{port} is refused: it is {what}. Only the administrator of this installation can open it."
    return Decision(False, "always refused", said)


def _page(host: Host, port: int, decision: Decision, verdict: Verdict | None) -> bytes:
    if verdict is Verdict.FAILED:
        status, advice = "502 Bad Gateway", ""
    else:
        status = "403 Forbidden"
        advice = f'\nRule: {decision.rule}\nTo allow it, add "{host}:{port}" to the sandbox\'s allow_net.\n'
        if decision.rule in ("always refused", "unknown address", "unreadable", "host mismatch"):
            advice = f"\nRule: {decision.rule}\n"
    body = f"Atoll: {decision.sentence}\n{advice}".encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\nX-Atoll-Egress: denied\r\n\r\n".encode() + body


def _drop(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
