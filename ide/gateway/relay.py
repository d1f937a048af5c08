"""One visitor's connection: each request goes to the exposure that it is for, and its answer comes back as it is.

Bodies are passed on piece by piece, and whoever does not take them holds up whoever sends them. Nothing is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import structlog
from django.db import DatabaseError

from ide.gateway import access, http1
from ide.gateway.access import Answer
from ide.gateway.directory import Directory
from ide.gateway.http1 import BadMessage, Body, Chunks, Ends, Headers, Request, Response
from ide.gateway.reach import guest
from ide.gateway.source import PIECE, Source
from ide.gateway.tasks import beside, ended, first_of
from sandboxes.errors import DomainError, QuotaExceeded, Unavailable
from sandboxes.models import Exposure
from sandboxes.services.activity import activity
from sandboxes.services.streams import GuestCall, GuestFailed, GuestInvalid

log = structlog.get_logger("atoll.gateway")

HEAD_SECONDS = 30.0
"""For which a visitor may take to send the head of a request."""
IDLE_SECONDS = 90.0
"""For which a connection is kept between two requests."""
MOST_OF_ONE = 512
"""Connections of one exposure at a time."""

type Find = Callable[[str], Awaitable[Exposure | None]]


class Gone(Exception):
    """The visitor has left."""


@dataclass(slots=True)
class Upstream:
    """A connection to a server in a sandbox."""

    exposure: int
    call: GuestCall
    source: Source


@dataclass(slots=True)
class Visitor:
    """Somebody's connection, after TLS."""

    source: Source
    writer: asyncio.StreamWriter
    address: str

    async def send(self, data: bytes) -> None:
        """Send, waiting while it is not taken. Gone."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except OSError as error:
            raise Gone from error


class Relay:
    """Serves one connection. `find` tells the exposure that a request with such a Host is for."""

    def __init__(self, visitor: Visitor, find: Find, directory: Directory) -> None:
        self._visitor = visitor
        self._find = find
        self._directory = directory
        self._upstream: Upstream | None = None

    async def run(self) -> None:
        """Until either side ends it."""
        try:
            wait = HEAD_SECONDS
            while True:
                try:
                    async with asyncio.timeout(wait):
                        head = await self._visitor.source.head()
                except TimeoutError:
                    return
                if head is None or not await self._request(http1.parse_request(head)):
                    return
                wait = IDLE_SECONDS
        except BadMessage as error:
            with contextlib.suppress(Gone):
                await self._refuse(error.status, str(error))
        except (Gone, OSError):
            pass
        finally:
            await self._let_go()

    async def _request(self, request: Request) -> bool:
        """Answer one request; whether the connection goes on."""
        body = request.body()
        try:
            exposure = await self._find(request.host)
        except DatabaseError as error:
            log.warning("an exposure could not be looked up", error=str(error))
            return await self._refuse(503, "the database does not answer: try again in a moment")
        if exposure is None:
            return await self._refuse(404, "nothing is exposed here (any more)")
        if exposure.port is None and exposure.pid is None:
            return await self._refuse(502, "this address does not lead to a port yet")
        if self._directory.count(exposure) >= MOST_OF_ONE:
            return await self._refuse(503, f"{MOST_OF_ONE} connections are open to this port already")
        try:
            admitted = await self._directory.guard.admit(exposure, request, self._visitor.address)
        except DatabaseError as error:
            log.warning("a visitor could not be looked up", error=str(error))
            return await self._refuse(503, "the database does not answer: try again in a moment")
        if isinstance(admitted, Answer):
            return await self._refuse(admitted.status, admitted.text, admitted.headers)
        with self._directory.inside(exposure):
            activity.note(exposure.sandbox)
            return await self._exchange(exposure, access.without_ours(admitted.request), body, admitted.headers)

    async def _exchange(self, exposure: Exposure, request: Request, body: Body, for_visitor: Headers) -> bool:
        again = self._upstream is not None and body.ends is Ends.NONE
        while True:
            reused = self._upstream is not None and self._upstream.exposure == exposure.pk
            if not reused:
                await self._let_go()
                try:
                    self._upstream = await self._dial(exposure)
                except (GuestFailed, GuestInvalid) as error:
                    return await self._refuse(502, f"{_target(exposure)} does not answer in the sandbox: {error}")
                except DomainError as error:
                    status = 503 if isinstance(error, Unavailable | QuotaExceeded) else 502
                    return await self._refuse(status, error.message)
            assert self._upstream is not None  # noqa: S101 (for the type checker)
            exchange = _Exchange(
                self._visitor, self._upstream, request, body, for_visitor, lambda: activity.note(exposure.sandbox)
            )
            try:
                goes_on = await exchange.run()
            except _NoAnswer as error:
                await self._let_go()
                # A server may end an idle connection at the moment it is used again: that says nothing of it
                if not (reused and again):
                    return await self._refuse(502, f"{_target(exposure)} gave no answer: {error}")
                again = False
                continue
            except BadMessage as error:
                await self._let_go()
                if error.status != 502:
                    raise
                return await self._refuse(502, f"{_target(exposure)} answered with something else than HTTP: {error}")
            except Unavailable:
                # In the middle of an answer, which must not look like its end
                self._visitor.writer.transport.abort()
                raise Gone from None
            if not exchange.reusable:
                await self._let_go()
            return goes_on

    async def _dial(self, exposure: Exposure) -> Upstream:
        target = {"port": exposure.port} if exposure.port is not None else {"pid": exposure.pid}
        call = await guest(
            sandbox=exposure.sandbox, method="dial", params=target, more=True, why="somebody opened an exposed port"
        )
        try:
            await call.reply()
        except BaseException:
            await call.abort()
            raise
        return Upstream(exposure.pk, call, Source(call.read))

    async def _let_go(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            await upstream.call.abort()

    async def _refuse(self, status: int, text: str, headers: Headers = ()) -> bool:
        said = f"{status}: {text}\n".encode()
        reason = _REASONS.get(status, b"Error")
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        await self._visitor.send(
            b"HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n%s"
            b"Cache-Control: no-store\r\nConnection: close\r\n\r\n%s" % (status, reason, len(said), lines, said)
        )
        return False


_REASONS = {
    303: b"See Other",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
}


_CLAIMS = frozenset({b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"})


def _target(exposure: Exposure) -> str:
    return f"port {exposure.port}" if exposure.port is not None else f"process {exposure.pid}"


class _NoAnswer(Exception):
    """The server ended the connection, and had answered nothing."""


class _Exchange:
    """One request and its answer. `reusable`, afterwards: whether the server's connection takes another one."""

    def __init__(
        self,
        visitor: Visitor,
        upstream: Upstream,
        request: Request,
        body: Body,
        for_visitor: Headers,
        used: Callable[[], None],
    ) -> None:
        self.reusable = False
        self._visitor = visitor
        self._upstream = upstream
        self._request = request
        self._body = body
        self._for_visitor = for_visitor
        self._used = used
        self._sent = False
        self._failed: BadMessage | None = None

    async def run(self) -> bool:
        """Whether the visitor's connection goes on.

        _NoAnswer, BadMessage, Gone; Unavailable in the middle of an answer.
        """
        try:
            await self._upstream.call.write(http1.request_head(_without_claims(self._request), self._added()))
        except Unavailable as error:
            raise _NoAnswer("the connection broke off") from error
        # Beside the answer, which may come before the request has ended, or instead of its rest
        sending = beside(self._send())
        try:
            return await self._answer(sending)
        except _NoAnswer:
            if self._failed is not None:
                raise self._failed from None
            raise
        finally:
            await ended(sending)

    def _added(self) -> Headers:
        added: list[tuple[bytes, bytes]] = [
            (b"X-Forwarded-For", self._visitor.address.encode()),
            (b"X-Forwarded-Proto", b"https"),
            (b"X-Forwarded-Host", self._request.get(b"host")),
        ]
        if self._request.upgrades:
            added += [(b"Connection", b"Upgrade"), (b"Upgrade", self._request.get(b"upgrade"))]
        return tuple(added)

    async def _send(self) -> None:
        """The request's body; then see to it that a visitor who leaves is noticed."""
        try:
            await _carry(self._visitor.source, self._body, self._upstream.call.write, self._used)
        except Unavailable:
            return  # the server takes no more, and may have answered all the same
        except BadMessage as error:
            self._failed = error
            await self._upstream.call.abort()
            return
        self._sent = True
        if not self._request.upgrades:
            # What comes meanwhile is the next request
            early = await self._visitor.source.piece()
            if early:
                self._visitor.source.put_back(early)
            else:
                await self._upstream.call.abort()

    async def _answer(self, sending: asyncio.Task[None]) -> bool:
        response = await self._response()
        if response.status == 101:
            upgraded = ((b"Connection", b"Upgrade"), (b"Upgrade", response.get(b"upgrade")))
            await self._visitor.send(http1.response_head(response, upgraded))
            await asyncio.wait([sending])
            await first_of(
                _carry(self._visitor.source, Body(Ends.CLOSE), self._upstream.call.write, self._used),
                _carry(self._upstream.source, Body(Ends.CLOSE), self._visitor.send, self._used),
            )
            return False
        body = response.body(self._request.method)
        if body.ends is Ends.CHUNKED and not self._request.minor:
            raise BadMessage("in chunks, to a request of HTTP/1.0", 502)
        # In chunks where its end would be that of a connection: then one that broke off does not look complete
        in_chunks = body.ends is Ends.CLOSE and self._request.minor == 1
        goes_on = self._request.keeps and (in_chunks or body.ends is not Ends.CLOSE)
        added: Headers = (*self._for_visitor, *(() if goes_on else ((b"Connection", b"close"),)))
        if in_chunks:
            await self._visitor.send(http1.response_head(response, (*added, (b"Transfer-Encoding", b"chunked"))))
            await _carry(self._upstream.source, body, self._send_chunk, self._used)
            await self._visitor.send(b"0\r\n\r\n")
        else:
            # A small answer is one piece
            await _carry(
                self._upstream.source, body, self._visitor.send, self._used, http1.response_head(response, added)
            )
        # Where the request has not ended its rest would be taken for another one
        kept = self._request.minor == 1 and response.keeps and body.ends is not Ends.CLOSE
        self.reusable = self._sent and kept
        return self._sent and goes_on

    async def _send_chunk(self, piece: bytes) -> None:
        await self._visitor.send(b"%x\r\n%s\r\n" % (len(piece), piece))

    async def _response(self) -> Response:
        """The answer's head; those that only inform are passed on before."""
        while True:
            try:
                head = await self._upstream.source.head()
            except Unavailable as error:
                raise _NoAnswer("the connection broke off") from error
            if head is None:
                raise _NoAnswer("it ended the connection")
            response = access.answer_without_ours(http1.parse_response(head))
            if response.status == 101 and not self._request.upgrades:
                raise BadMessage("another protocol than was asked for", 502)
            if not response.informs:
                return response
            if self._request.minor:  # one of HTTP/1.0 would take it for the answer
                await self._visitor.send(http1.response_head(response, ()))


def _without_claims(request: Request) -> Request:
    """The request without what a visitor says of his own way here: nobody vouches for it."""
    return replace(request, headers=tuple(one for one in request.headers if one[0].lower() not in _CLAIMS))


async def _carry(
    source: Source,
    body: Body,
    send: Callable[[bytes], Awaitable[None]],
    used: Callable[[], None],
    head: bytes = b"",
) -> None:
    """A body, up to its end, behind its head. BadMessage where it breaks off; what `send` raises.

    `used` is called with each piece: what goes on for hours is use for hours.
    """
    left = body.length
    chunks = Chunks()
    if head and (body.ends is Ends.NONE or not source.holds):
        # Nothing of the body is there yet, and may not be for long
        await send(head)
        head = b""
    while not (body.ends is Ends.NONE or (body.ends is Ends.LENGTH and left == 0) or chunks.done):
        piece = await source.piece(min(left, PIECE) if body.ends is Ends.LENGTH else PIECE)
        if not piece:
            if body.ends is Ends.CLOSE:
                break
            raise BadMessage("the body broke off")
        used()
        if body.ends is Ends.LENGTH:
            left -= len(piece)
        elif body.ends is Ends.CHUNKED:
            taken = chunks.feed(piece)
            if taken < len(piece):
                source.put_back(piece[taken:])
                piece = piece[:taken]
        await send(head + piece)
        head = b""
    if head:
        await send(head)
