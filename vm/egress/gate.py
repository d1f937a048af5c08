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
from vm.egress.asking import Asking
from vm.egress.connection import Connection, Denied, Original, drop, original_destination
from vm.egress.explain import answer
from vm.egress.first_words import PEEKING, READERS, Reader, begun, names_in_tls, said_by, speaks_tls
from vm.egress.handover import ACCEPTED, HandOver, head
from vm.egress.hooks import Hook, is_hooked
from vm.egress.journal import Passage, Verdict, stray_placeholder
from vm.egress.judge import Judge
from vm.egress.peek import Claim, Speech, Unreadable, looks_like_http, read_head, read_hello, speech
from vm.egress.policy import Address, Decision, Host, Policy
from vm.egress.refused import Refusals
from vm.egress.requests import Requests
from vm.egress.resolver import VIRTUAL, VirtualNames
from vm.egress.secrets import Bindings, placeholders_in
from vm.egress.splice import Side
from vm.egress.turns import Share, Turns
from vm.egress.upstream import NotFound, Upstream

log = logging.getLogger("atoll.egress")

_EXPLAINING = 0.5  # seconds in which a client that is denied may show that it speaks HTTP, or TLS
_EXPLAINING_TLS = 2.0  # where it is expected to
_TOLD = 10.0  # seconds that telling it over TLS may take
_HANDING_OVER = 5.0
_LEAVING = 2.0  # seconds in which it reads what it was told
_IDLE = 3600.0
_LOOK = 30.0
_PATIENCE = 60.0  # seconds that a connection waits to be allowed, where somebody wants to be asked
_ADDRESSES = 4  # of a host, that are tried
_LOOKUPS = 4  # at a time, for one machine
_AGREED = 256  # whom clients asked for and where, that are remembered
_AT_ONCE = 32  # accepted in one turn of the loop: others have connections too
_LOOPBACK = IPv4Address("127.0.0.1")


class Gate:
    """Serves one listener from `open` to `close`. `journal` is told of each connection when it is over.

    `interceptor` says where connections are handed over that a secret or hook is for, or that are denied over TLS;
    there `token` stands for this machine. None where no interceptor lives. Gates with the same `turns` take
    turns.
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
        limit: int,
        patience: float = _PATIENCE,
        secrets: Sequence[Secret] = (),
        token: str = "",
        interceptor: Callable[[], Awaitable[int | None]] | None = None,
        hooks: Sequence[Hook] = (),
        original: Original = original_destination,
        turns: Turns | None = None,
    ) -> None:
        self._listener = listener
        self._judge = Judge(policy, refusals)
        self._names = names
        self._refusals = refusals
        self._upstream = upstream
        self._journal = journal
        self._limit = limit
        self._asking = Asking(patience, journal)
        self._placeholders = {secret.placeholder: secret.name for secret in secrets}
        self._bindings = Bindings(secrets)
        self._token = token
        self._interceptor = interceptor
        self._hooks = hooks
        self._original = original
        self._share = Share(turns) if turns is not None else None
        self._agreed: set[tuple[Host, int, Claim]] = set()  # by this policy and these secrets
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

    async def wait_closed(self) -> None:
        """Until the journal knows of every connection that `close` has reset."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def change(self, policy: Policy, secrets: Sequence[Secret] = ()) -> None:
        """Let another policy and other secrets hold, for the connections that there are already as well."""
        self._judge = Judge(policy, self._refusals)
        self._placeholders = {secret.placeholder: secret.name for secret in secrets}
        self._bindings = Bindings(secrets)
        self._agreed.clear()
        self._asking.changed()
        for connection in list(self._connections):
            if connection.decision is not None and connection.verdict is None:
                decision = self._judge.now(connection)
                if decision.allowed and self._is_on_another_way(connection):
                    decision = _secrets_changed(connection)
                if not decision.allowed:
                    connection.decision, connection.verdict = decision, Verdict.CUT
                    connection.reset()

    def _is_on_another_way(self, connection: Connection) -> bool:
        """Whether a secret of its host was revoked, or its first one was given: a new value alone is no reason."""
        if connection.placeholders is None:
            claimed = connection.claim.host if connection.claim is not None else None
            said = connection.tls or connection.claim is not None
            return said and (self._is_intercepted(connection) or self._is_looked_through(claimed, connection.port))
        return not connection.placeholders <= {secret.placeholder for secret in self._bound(connection)}

    def _is_intercepted(self, connection: Connection) -> bool:
        return self._is_looked_through(connection.host, connection.port)

    def _is_looked_through(self, host: Host | None, port: int) -> bool:
        """Whether a secret or hook is for that host, so that nothing else may pass there than an interceptor reads."""
        return isinstance(host, str) and (bool(self._bindings.to(host, port)) or is_hooked(self._hooks, host, port))

    def _may_be_nameless(self, connection: Connection) -> bool:
        """Whether TLS may name nobody: not on 443, nor to an address that may be one of what is looked through."""
        port = connection.port
        if port in READERS:
            return False
        hooked = any(rule.port in (None, port) for hook in self._hooks for rule in hook.hosts)
        return isinstance(connection.host, str) or not (hooked or self._bindings.any_on(port))

    def _bound(self, connection: Connection) -> tuple[Secret, ...]:
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
        connection.guest = guest = Side(sock, connection.side_gone, self._share)
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
            self._journal(connection.passage())

    async def _pass(self, connection: Connection, guest: Side) -> None:
        """Join the guest to whom it wants to talk to. Denied."""
        first = self._judge.dialled(connection)
        if first.ask:
            first = await self._asking.answered(connection, first, lambda one: self._judge.dialled(one))
        if not first.allowed and not first.open:
            raise Denied(first)
        reader = READERS.get(connection.port)
        if reader is None:
            reader = await self._begun(connection, guest)
        if guest.closed:
            return
        connection.claim = await self._claimed(connection, guest, reader)
        if connection.tls and self._is_intercepted(connection):
            connection.part()
            connection.placeholders = frozenset(secret.placeholder for secret in self._bound(connection))
            addresses = await self._addresses(connection)
            connection.address = await self._upstream.answering(addresses, connection.port)
            upstream = await self._handed_over(connection)
        else:
            self._require_unbound(connection, guest)
            upstream = connection.upstream or await self._joined(connection, await self._dialled(connection))
        self._decide(connection)
        if reader is read_head:
            requests = Requests(lambda claim, head: self._agree(connection, claim, head))
            guest.follow(requests, lambda why: _end(connection, why))
        if guest.closed or upstream.closed:
            connection.reset()
        else:
            guest.join(upstream)

    async def _begun(self, connection: Connection, guest: Side) -> Reader | None:
        """What reads what the client says, once it does, on a port where it need not: it hears the server. Denied."""
        upstream = await self._joined(connection, await self._dialled(connection))
        self._decide(connection)
        guest.hear(upstream)
        try:
            return await begun(guest, upstream, lambda: self._is_intercepted(connection))
        except Unreadable as error:
            raise _unreadable(connection, error) from error

    def _decide(self, connection: Connection) -> None:
        """Let what holds now be the decision: it may have been changed meanwhile. Denied."""
        decision = self._judge.now(connection)
        if not decision.allowed:
            raise Denied(decision)
        if self._is_on_another_way(connection):
            raise Denied(_secrets_changed(connection), Verdict.CUT)
        connection.decision = decision

    async def _joined(self, connection: Connection, sock: socket.socket) -> Side:
        connection.upstream = upstream = Side(sock, connection.side_gone, self._share)
        try:
            await asyncio.get_running_loop().create_connection(lambda: upstream, sock=sock)
        except BaseException:
            sock.close()
            raise
        return upstream

    async def _handed_over(self, connection: Connection) -> Side:
        """The interceptor's end of a connection, which it takes from here. Denied if none does."""
        host, port, decision = connection.host, connection.port, connection.decision
        denied = decision if decision is not None and not decision.allowed else None
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

    async def _claimed(self, connection: Connection, guest: Side, reader: Reader | None) -> Claim | None:
        """What the client says itself, where it must say something. Denied if it says nothing, or something else."""
        if reader is None:
            return None
        try:
            claim = await said_by(guest, reader, PEEKING)
        except Unreadable as error:
            raise _unreadable(connection, error) from error
        connection.tls = reader is read_hello
        self._require_agreement(connection, claim)
        return claim

    def _require_agreement(self, connection: Connection, claim: Claim) -> None:
        """Whom a client says it talks to must be whom it dialled, and be on the same way. Denied."""
        self._judge.require_agreement(connection, claim, nameless=self._may_be_nameless(connection))
        if claim.host != connection.host and self._is_looked_through(claim.host, connection.port):
            raise Denied(_by_another_name(connection, claim))

    def _agree(self, connection: Connection, claim: Claim, head: bytes) -> None:
        """The same for a later request on the connection. Unreadable, with the decision made."""
        self._tell_strays(connection, head)
        known = connection.host, connection.port, claim
        if known not in self._agreed:
            try:
                self._require_agreement(connection, claim)
            except Denied as denied:
                connection.decision = denied.decision
                raise Unreadable(denied.decision.sentence) from denied
            if len(self._agreed) >= _AGREED:
                self._agreed.clear()
            self._agreed.add(known)
        connection.claim = claim

    def _require_unbound(self, connection: Connection, guest: Side) -> None:
        """A plain request to a host that has a secret is Denied: it could answer with the value, in plain text.

        Placeholders in it are told of, whoever it is for: they travel as they are, since no value ever travels so.
        """
        request = guest.held or b""
        if connection.tls or speech(request) is not Speech.HTTP:
            return
        self._tell_strays(connection, request)
        if self._bound(connection):
            raise Denied(_has_a_secret(connection))
        if self._is_intercepted(connection):
            raise Denied(_has_a_hook(connection))

    def _tell_strays(self, connection: Connection, said: bytes | bytearray) -> None:
        """Tell of the placeholders in what a client says in plain text, of each once for the connection."""
        for name in {self._placeholders.get(placeholder) for placeholder in placeholders_in(said)} - connection.strayed:
            connection.strayed.add(name)
            self._journal(stray_placeholder(str(connection.host), connection.port, name, plain=True))

    async def _dialled(self, connection: Connection) -> socket.socket:
        """A socket to an address that was checked. Denied."""
        host, port = connection.host, connection.port
        try:
            connection.address, sock = await self._upstream.dial_any(await self._addresses(connection), port)
        except OSError as error:
            said = f"{host}:{port} cannot be reached: {error.strerror or 'no answer in time'}."
            raise Denied(Decision(False, "unreachable", said), Verdict.FAILED) from error
        return sock

    async def _addresses(self, connection: Connection) -> list[Address]:
        """Some addresses that the host has and that were checked, at least one. Denied."""
        host = connection.host
        if isinstance(host, str):
            try:
                addresses = await self._upstream.resolve(host, self._lookups)
            except NotFound as error:
                raise Denied(Decision(False, "not found", f"{error}."), Verdict.FAILED) from error
        else:
            addresses = [host]
        checked, denied = self._checked(connection, addresses)
        if not checked and denied is not None and denied.ask:
            # A pattern of IPv6 addresses could have allowed it
            denied = await self._asking.answered(connection, denied, lambda one: self._judge.now(one))
            if denied.allowed:
                checked, denied = self._checked(connection, addresses)
        if not checked and denied is not None:
            raise Denied(denied)
        return checked

    def _checked(self, connection: Connection, addresses: Sequence[Address]) -> tuple[list[Address], Decision | None]:
        """Those of some addresses that are allowed, and why another is not: one that may be asked about, if any is."""
        checked: list[Address] = []
        denied: Decision | None = None
        for address in addresses[:_ADDRESSES]:
            connection.address = address
            decision = self._judge.now(connection)
            if decision.allowed:
                checked.append(address)
            elif denied is None or not denied.ask:
                denied = decision
        return checked, denied

    async def _explain(self, connection: Connection, guest: Side) -> None:
        """Tell the guest why not, if it can be told."""
        decision = connection.decision
        connection.part()
        if decision is None or guest.closed:
            return
        tls = await speaks_tls(guest, _EXPLAINING_TLS if connection.port == 443 else _EXPLAINING)
        if guest.held and connection.port != 443 and looks_like_http(guest.held):
            failed = connection.verdict is Verdict.FAILED
            guest.say(answer(connection.host, connection.port, decision, failed=failed))
            with suppress(TimeoutError):
                async with asyncio.timeout(_LEAVING):
                    while await guest.more(_LEAVING):
                        pass
            guest.close()
        elif tls and await names_in_tls(guest, connection.host, _EXPLAINING_TLS):
            with suppress(Denied, TimeoutError):
                async with asyncio.timeout(_TOLD):
                    guest.join(await self._handed_over(connection))
                    await connection.ended.wait()
            guest.reset()
        else:
            guest.reset()

    def _look(self) -> None:
        """Reset what nobody has used for an hour."""
        self._timer = asyncio.get_running_loop().call_later(_LOOK, self._look)
        before = time.monotonic() - _IDLE
        for connection in list(self._connections):
            guest, upstream = connection.guest, connection.upstream
            if guest is not None and upstream is not None and max(guest.touched, upstream.touched) < before:
                connection.reset()


def _unreadable(connection: Connection, error: Unreadable) -> Denied:
    return Denied(Decision(False, "unreadable", f"{connection.host}:{connection.port} is denied: {error}."))


def _end(connection: Connection, why: Unreadable) -> None:
    """Reset it for what its client sent after its first request."""
    if connection.decision is None or connection.decision.allowed:
        connection.decision = _unreadable(connection, why).decision
    connection.verdict = Verdict.DENIED
    connection.reset()


def _by_another_name(connection: Connection, claim: Claim) -> Decision:
    said = (
        f"{connection.host}:{connection.port} is denied: the client asked there for {claim.host}, which has a secret "
        "or a hook and is reached by its name only."
    )
    return Decision(False, "host mismatch", said)


def _has_a_secret(connection: Connection) -> Decision:
    said = f"{connection.host}:{connection.port} is denied over plain HTTP, because it has a secret: use https."
    return Decision(False, "secrets", said)


def _has_a_hook(connection: Connection) -> Decision:
    said = f"{connection.host}:{connection.port} is denied over plain HTTP, because it has a hook: use https."
    return Decision(False, "hook", said)


def _secrets_changed(connection: Connection) -> Decision:
    said = f"{connection.host}:{connection.port} was reset, because its secrets were changed."
    return Decision(False, "secrets", said)
