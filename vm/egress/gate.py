"""The gate of one machine: takes every TCP connection of the guest, decides, and passes it on or says why not.

Which listener accepted says whose connection it is; where it wanted to go is the kernel's word, never the guest's.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address

from vm.api import Secret
from vm.background import spawn
from vm.egress.connection import Connection, Denied, Original, always_refused, drop, original_destination
from vm.egress.explain import answer
from vm.egress.handover import ACCEPTED, HandOver, head
from vm.egress.journal import Passage, Verdict, stray_placeholder
from vm.egress.peek import Claim, Unreadable, looks_like_http, read_head, read_hello
from vm.egress.policy import Address, Decision, Host, Policy
from vm.egress.refused import Refusals
from vm.egress.resolver import VIRTUAL, VirtualNames
from vm.egress.secrets import Bindings, placeholders_in
from vm.egress.splice import Side
from vm.egress.upstream import NotFound, Upstream

log = logging.getLogger("atoll.egress")

MAX_CONNECTIONS = 1024
_PEEKING = 10.0  # seconds a client has to say whom it talks to
_EXPLAINING = 0.5  # seconds in which a client that is denied may show that it speaks HTTP, or TLS
_EXPLAINING_TLS = 2.0  # where it is expected to
_TOLD = 10.0  # seconds that telling it over TLS may take
_FIRST_WORD = 60.0  # seconds in which one end of a connection on any other port says something
_HANDING_OVER = 5.0
_LEAVING = 2.0  # seconds in which it reads what it was told
_IDLE = 3600.0
_LOOK = 30.0
_PATIENCE = 60.0  # seconds that a connection waits to be allowed, where somebody wants to be asked
_ASKED = 32  # that wait so at a time
_ADDRESSES = 4  # of a host, that are tried
_LOOKUPS = 4  # at a time, for one machine
_AT_ONCE = 32  # accepted in one turn of the loop: others have connections too
type Reader = Callable[[bytes | bytearray], Claim | None]
_READERS: dict[int, Reader] = {443: read_hello, 80: read_head}
_TLS = 0x16
_LOOPBACK = IPv4Address("127.0.0.1")


class Gate:
    """Serves one listener from `open` to `close`. `journal` is told of each connection when it is over.

    `interceptor` says where connections are handed over that a secret is for, or that are denied over TLS; there
    `token` stands for this machine. None where no interceptor lives.
    """

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
        secrets: Sequence[Secret] = (),
        token: str = "",
        interceptor: Callable[[], Awaitable[int | None]] | None = None,
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
        self._asked: set[Connection] = set()
        self._secrets = tuple(secrets)
        self._bindings = Bindings(secrets)
        self._token = token
        self._interceptor = interceptor
        self._original = original
        self._connections: set[Connection] = set()
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

    def change(self, policy: Policy, secrets: Sequence[Secret] = ()) -> None:
        """Let another policy and other secrets hold, for the connections that there are already as well."""
        self._policy, self._secrets, self._bindings = policy, tuple(secrets), Bindings(secrets)
        for connection in self._asked:
            connection.news.set()
        for connection in list(self._connections):
            if connection.decision is not None and connection.verdict is None:
                decision = self._judged(connection)
                if decision.allowed and self._is_on_another_way(connection):
                    decision = _secrets_changed(connection)
                if not decision.allowed:
                    connection.decision, connection.verdict = decision, Verdict.CUT
                    connection.reset()

    def _is_on_another_way(self, connection: Connection) -> bool:
        """Whether a secret of its host was revoked, or its first one was given: a new value alone is no reason."""
        bound = self._bound(connection)
        if connection.placeholders is None:
            return connection.tls and bool(bound)
        return not connection.placeholders <= {secret.placeholder for secret in bound}

    def _bound(self, connection: Connection) -> tuple[Secret, ...]:
        if not isinstance(connection.host, str):
            return ()
        return self._bindings.to(connection.host, connection.port)

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
                drop(sock)
                continue
            if len(self._connections) >= self._limit:
                drop(sock)
                self._full(address, port)
                continue
            name = self._names.name_of(address) if address in VIRTUAL else None
            connection = Connection(name or address, port)
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

    async def _serve(self, connection: Connection, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        connection.guest = guest = Side(sock, connection.side_gone)
        try:
            await loop.connect_accepted_socket(lambda: guest, sock)
            try:
                await self._pass(connection, guest)
                await connection.ended.wait()
            except Denied as denied:
                connection.decision = denied.decision
                connection.verdict = denied.verdict
                await self._explain(connection, guest)
        finally:
            if guest.transport is None:
                sock.close()
            connection.reset()
            self._connections.discard(connection)
            self._write_down(connection)

    async def _pass(self, connection: Connection, guest: Side) -> None:
        """Join the guest to whom it wants to talk to. Denied."""
        first = self._judge_dialled(connection)
        if first.ask:
            first = await self._answered(connection, first)
        if not first.allowed and not first.open:
            raise Denied(first)
        reader, waiting = _READERS.get(connection.port), None
        if reader is None and self._bound(connection):
            # Who speaks first tells which protocol it is; however slow a client is, nothing else would
            waiting = await self._joined(connection, await self._dialled(connection))
            if await _begins_with_tls(guest, waiting):
                waiting.reset()
                reader, waiting, connection.upstream = read_hello, None, None
        connection.claim = await self._claimed(connection, guest, first, reader)
        if connection.tls and (bound := self._bound(connection)):
            connection.placeholders = frozenset(secret.placeholder for secret in bound)
            connection.address = (await self._addresses(connection))[0]
            upstream = await self._handed_over(connection)
        else:
            upstream = waiting or await self._joined(connection, await self._dialled(connection))
        decision = self._judged(connection)
        if not decision.allowed:  # it was changed meanwhile
            raise Denied(decision)
        if self._is_on_another_way(connection):
            raise Denied(_secrets_changed(connection), Verdict.CUT)
        connection.decision = decision
        if guest.closed or upstream.closed:
            connection.reset()
        else:
            guest.join(upstream)

    async def _joined(self, connection: Connection, sock: socket.socket) -> Side:
        connection.upstream = upstream = Side(sock, connection.side_gone)
        try:
            await asyncio.get_running_loop().create_connection(lambda: upstream, sock=sock)
        except BaseException:
            sock.close()
            raise
        return upstream

    async def _handed_over(self, connection: Connection) -> Side:
        """The interceptor's end of a connection, which it takes from here. Denied if none does."""
        host, port, denied = connection.host, connection.port, connection.decision
        interceptor = await self._interceptor() if self._interceptor is not None else None
        try:
            if interceptor is None or not isinstance(host, str):
                raise OSError("none lives")
            address = None if denied is not None else connection.address
            failed = connection.verdict is Verdict.FAILED
            handed = HandOver(self._token, host, port, address=address, denied=denied, failed=failed)
            async with asyncio.timeout(_HANDING_OVER):
                side = await self._joined(connection, await self._upstream.dial(_LOOPBACK, interceptor))
                if side.transport is not None:
                    side.transport.write(head(handed))
                while not (side.held or b"").startswith(ACCEPTED):
                    if len(side.held or b"") >= len(ACCEPTED) or not await side.more(_HANDING_OVER):
                        raise OSError("it was not taken")
        except (OSError, TimeoutError) as error:
            if connection.upstream is not None:
                connection.upstream.reset()
                connection.upstream = None
            said = f"{host}:{port} cannot be reached now: what puts secrets into requests to it does not answer."
            raise Denied(Decision(False, "interceptor", f"{said} Try again in a moment."), Verdict.FAILED) from error
        if side.held is not None:
            del side.held[: len(ACCEPTED)]
        side.counted = 0
        return side

    def _judge_dialled(self, connection: Connection) -> Decision:
        host, port = connection.host, connection.port
        if isinstance(host, str):
            what = self._refusals.of_name(host, port)
        elif host in VIRTUAL and self._refusals.of_address(host, port) is not None:
            return Decision(False, "unknown address", f"{host}:{port} was never the address of a name.")
        else:
            what = self._refusals.of_address(host, port)
        if what is not None:
            return always_refused(host, port, what)
        return self._policy.judge(host, port)

    async def _answered(self, connection: Connection, first: Decision) -> Decision:
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

    async def _claimed(
        self, connection: Connection, guest: Side, first: Decision, reader: Reader | None
    ) -> Claim | None:
        """What the client says itself, where it must say something. Denied if it says nothing, or something else."""
        host, port = connection.host, connection.port
        if reader is None:
            return None
        until = time.monotonic() + _PEEKING
        try:
            while (claim := reader(guest.held or b"")) is None:
                if not await guest.more(until - time.monotonic()):
                    raise Unreadable("the client did not say in time whom it talks to")
        except Unreadable as error:
            raise Denied(Decision(False, "unreadable", f"{host}:{port} is denied: {error}.")) from error
        connection.tls = reader is read_hello
        if not connection.tls:
            self._look_for_placeholders(connection, guest.held or b"")
        if claim.host is None:
            # Nobody names an address in TLS: a rule for that address is needed, not only none against it
            if not isinstance(host, str) and any(rule.matches(host, port) for rule in self._policy.allow or ()):
                return claim
            raise Denied(Decision(False, "no SNI", f"{host}:{port} is denied: TLS without a server name."))
        if isinstance(host, str) or not isinstance(claim.host, str):
            agrees = claim.host == host
        else:
            agrees = True  # the address was asked for and is judged; a name that is denied is below
            what = self._refusals.of_name(claim.host, port)
            if what is not None:
                raise Denied(always_refused(claim.host, port, what))
            if any(rule.matches(claim.host, port) for rule in self._policy.deny):
                raise Denied(self._policy.judge(claim.host, port))
        if not agrees or claim.port not in (None, port):
            said = f"{host}:{port} is denied: the client asked there for {claim.host}."
            raise Denied(Decision(False, "host mismatch", said))
        return claim

    async def _speaks_tls(self, guest: Side, patience: float) -> bool:
        until = time.monotonic() + patience
        while not guest.held and await guest.more(until - time.monotonic()):
            pass
        return guest.held is not None and guest.held[:1] == bytes([_TLS])

    def _look_for_placeholders(self, connection: Connection, request: bytes | bytearray) -> None:
        """Tell of placeholders in a plain request: they travel as they are, since no value ever travels so."""
        names = {secret.placeholder: secret.name for secret in self._secrets}
        for placeholder in set(placeholders_in(request)):
            self._journal(stray_placeholder(str(connection.host), connection.port, names.get(placeholder), plain=True))

    async def _dialled(self, connection: Connection) -> socket.socket:
        """A socket to an address that was checked. Denied."""
        host, port = connection.host, connection.port
        failure: Exception | None = None
        for address in await self._addresses(connection):
            connection.address = address
            try:
                return await self._upstream.dial(address, port)
            except (OSError, TimeoutError) as error:
                failure = error
        why = getattr(failure, "strerror", None) or "no answer in time"
        raise Denied(Decision(False, "unreachable", f"{host}:{port} cannot be reached: {why}."), Verdict.FAILED)

    async def _addresses(self, connection: Connection) -> list[Address]:
        """Some addresses that the host has and that were checked, at least one. Denied."""
        host = connection.host
        if isinstance(host, str):
            try:
                async with self._lookups:
                    addresses = await self._upstream.resolve(host)
            except NotFound as error:
                raise Denied(Decision(False, "not found", f"{error}."), Verdict.FAILED) from error
        else:
            addresses = [host]
        checked: list[Address] = []
        denied: Decision | None = None
        for address in addresses[:_ADDRESSES]:
            connection.address = address
            decision = self._judged(connection)
            if decision.allowed:
                checked.append(address)
            else:
                denied = decision
        if not checked and denied is not None:
            raise Denied(denied)
        return checked

    def _judged(self, connection: Connection) -> Decision:
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
            return always_refused(host, port, f"{what}: it resolves to {address}")
        return self._policy.judge(host, port, address)

    async def _explain(self, connection: Connection, guest: Side) -> None:
        """Tell the guest why not, if it can be told."""
        decision = connection.decision
        if decision is None or guest.closed:
            return
        tls = await self._speaks_tls(guest, _EXPLAINING_TLS if connection.port == 443 else _EXPLAINING)
        if guest.held and connection.port != 443 and looks_like_http(guest.held):
            failed = connection.verdict is Verdict.FAILED
            guest.say(answer(connection.host, connection.port, decision, failed=failed))
            with suppress(TimeoutError):
                async with asyncio.timeout(_LEAVING):
                    while await guest.more(_LEAVING):
                        pass
            guest.close()
        elif tls and await self._names_host(connection, guest):
            with suppress(Denied, TimeoutError):
                async with asyncio.timeout(_TOLD):
                    guest.join(await self._handed_over(connection))
                    await connection.ended.wait()
            guest.reset()
        else:
            guest.reset()

    async def _names_host(self, connection: Connection, guest: Side) -> bool:
        """Whether a client that is denied says in TLS whom it means, so that it can be answered in that name."""
        until = time.monotonic() + _EXPLAINING_TLS
        with suppress(Unreadable):
            while (claim := read_hello(guest.held or b"")) is None:
                if not await guest.more(until - time.monotonic()):
                    return False
            return isinstance(claim.host, str) and claim.host == connection.host
        return False

    def _write_down(self, connection: Connection) -> None:
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


def _secrets_changed(connection: Connection) -> Decision:
    said = f"{connection.host}:{connection.port} was reset, because its secrets were changed."
    return Decision(False, "secrets", said)


async def _begins_with_tls(guest: Side, upstream: Side) -> bool:
    """Whether it is the client that speaks first, and TLS."""
    going_on = True
    while going_on and not guest.held and not upstream.held:
        waits = [spawn(side.more(_FIRST_WORD), name="first word") for side in (guest, upstream)]
        done, others = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            other.cancel()
        if others:
            await asyncio.wait(others)
        going_on = all(wait.result() for wait in done)
    return not upstream.held and (guest.held or b"")[:1] == bytes([_TLS])
