"""Joins a page's terminal to the agent of a sandbox; once attached, bytes pass without a look at the database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from ide.auth import NOT_ALLOWED, revoked
from ide.xterm_bridge.session import Attached, Session, TerminalError
from sandboxes.database import in_thread
from sandboxes.errors import DomainError, Forbidden, NotFound, NotRunning, Unavailable
from sandboxes.models import Sandbox, User
from sandboxes.permissions import Actor
from sandboxes.selectors.sandboxes import sandbox_get
from sandboxes.services import accounts, streams
from sandboxes.services.activity import activity

SIGNED_OUT, GONE = 4401, 4404

type Receive = Callable[[], Awaitable[dict[str, Any]]]
type Send = Callable[[dict[str, Any]], Awaitable[None]]


class TerminalConsumer:
    """`/ws/sandboxes/<id>/terminal`, as ide/xterm_bridge/README.md has it."""

    @classmethod
    def as_asgi(cls) -> Any:
        """The application; it keeps nothing between connections."""
        return cls()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """One connection, to its end. A page that goes takes nothing with it: the terminal runs on."""
        await receive()
        await send({"type": "websocket.accept"})
        user = scope["user"]
        if not user.is_authenticated:
            await send({"type": "websocket.close", "code": SIGNED_OUT})
            return
        try:
            sandbox, actor = await in_thread(_find, user, scope["url_route"]["kwargs"]["sandbox"])
        except DomainError as error:
            code = NOT_ALLOWED if isinstance(error, Forbidden) else GONE
            await send({"type": "websocket.close", "code": code, "reason": error.message[:100]})
            return
        page = _Page(send)
        session = Session(GuestTerminals(sandbox, actor), page)
        serve = asyncio.ensure_future(session.run())
        listen = asyncio.ensure_future(_listen(receive, session))
        expelled = asyncio.ensure_future(revoked(scope, actor, "sandbox.use"))
        tasks = (serve, listen, expelled)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if not expelled.cancelled():
            await page.close(expelled.result())
        if not serve.cancelled() and (failure := serve.exception()) is not None:
            raise failure


async def _listen(receive: Receive, session: Session) -> None:
    while (message := await receive())["type"] == "websocket.receive":
        if (data := message.get("bytes")) is not None:
            session.data(data)
        else:
            session.text(message["text"])


def _find(user: User, public_id: str) -> tuple[Sandbox, Actor]:
    """The sandbox and the person as a member of its organization. NotFound, Forbidden."""
    for membership in user.memberships.all():
        actor = accounts.actor_of(user=user, membership=membership)
        try:
            return sandbox_get(actor=actor, public_id=public_id, action="sandbox.use"), actor
        except NotFound:
            continue
    raise NotFound


class _Page:
    """The page's end of the connection, for the bridge."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def send_bytes(self, data: bytes) -> None:
        await self._send({"type": "websocket.send", "bytes": data})

    async def send_text(self, text: str) -> None:
        await self._send({"type": "websocket.send", "text": text})

    async def close(self, code: int) -> None:
        await self._send({"type": "websocket.close", "code": code})


class GuestTerminals:
    """The terminals of one sandbox (docs/guest-protocol.md), as the bridge's host."""

    def __init__(self, sandbox: Sandbox, actor: Actor) -> None:
        self._sandbox = sandbox
        self._actor = actor

    async def open(self, *, cols: int, rows: int, cwd: str | None) -> str:
        """Start the user's login shell; waits for a machine that is still starting or resuming."""
        await self._ready()
        activity.note(self._sandbox)
        params = {"cols": cols, "rows": rows, **({} if cwd is None else {"cwd": cwd})}
        return str((await self._ask("terminal.open", params))["id"])

    async def attach(self, terminal: str, *, offset: int | None, cols: int, rows: int) -> Attached:
        """Its output from `offset` on; waits as `open` does, for a page comes back while its machine resumes."""
        await self._ready()
        params = {"id": terminal, "cols": cols, "rows": rows, **({} if offset is None else {"offset": offset})}
        call = await self._begin("terminal.attach", params, more=True)
        try:
            reply = await _reply(call)
            offset, end = int(reply["offset"]), int(reply["end"])
            return Attached(
                id=terminal,
                stream=_Stream(call, self._sandbox, replayed=max(0, end - offset)),
                offset=offset,
                end=end,
                truncated=bool(reply["truncated"]),
            )
        except BaseException:
            await call.abort()
            raise

    async def resize(self, terminal: str, *, cols: int, rows: int) -> None:
        """Give it another size."""
        await self._ask("terminal.resize", {"id": terminal, "cols": cols, "rows": rows})

    async def list(self) -> Sequence[Mapping[str, Any]]:
        """All terminals of the machine; the guest's word, so only what looks right is passed on."""
        entries = await self._ask("terminal.list", {})
        if not isinstance(entries, list):
            return []
        return [entry for entry in entries[:256] if isinstance(entry, dict) and isinstance(entry.get("id"), str)]

    async def close(self, terminal: str) -> None:
        """Hang up."""
        await self._ask("terminal.close", {"id": terminal})

    async def _ready(self) -> None:
        # It wakes nothing: a page asks for that, when its person comes back.
        try:
            await streams.guest_ready(sandbox=self._sandbox)
        except DomainError as error:
            raise _failure(error) from error

    async def _begin(self, method: str, params: Mapping[str, Any], *, more: bool = False) -> streams.GuestCall:
        try:
            return await streams.guest_call(
                sandbox=self._sandbox, method=method, params=params, actor=self._actor, more=more
            )
        except DomainError as error:
            raise _failure(error) from error

    async def _ask(self, method: str, params: Mapping[str, Any]) -> Any:
        async with await self._begin(method, params) as call:
            return await _reply(call)


async def _reply(call: streams.GuestCall) -> Any:
    try:
        return await call.reply()
    except DomainError as error:
        raise _failure(error) from error
    except streams.GuestFailed as error:
        missing = error.error.get("constructorName") == "BadResource"
        raise TerminalError(
            "no_terminal" if missing else "guest_failed",
            "This terminal has ended." if missing else f"The machine refused: {str(error)[:200]}",
            retry=False,
        ) from error
    except (streams.GuestInvalid, streams.GuestUnknown) as error:
        raise TerminalError("guest_failed", "The machine's agent does not know this request.", retry=False) from error


def _failure(error: DomainError) -> TerminalError:
    """A stopped machine will not come back by asking; a host or agent that is away may."""
    return TerminalError(error.code.lower(), error.message, retry=not isinstance(error, NotRunning | Forbidden))


class _Stream:
    """The raw part of an attached call, for the bridge."""

    def __init__(self, call: streams.GuestCall, sandbox: Sandbox, *, replayed: int) -> None:
        self._call = call
        self._sandbox = sandbox
        self._replayed = replayed  # bytes still to come that were put out before this page attached

    async def read(self, limit: int) -> bytes:
        """Output as it comes."""
        try:
            data = await self._call.read(limit)
        except DomainError as error:
            raise await self._broken(error) from error
        # Old output and the end of the terminal are no use of it: a page that reconnects reads them by itself.
        if len(data) > self._replayed:
            activity.note(self._sandbox)
        self._replayed = max(0, self._replayed - len(data))
        return data

    async def write(self, data: bytes) -> None:
        """Typed bytes."""
        activity.note(self._sandbox)
        try:
            await self._call.write(data)
        except DomainError as error:
            raise await self._broken(error) from error

    async def abort(self) -> None:
        """Leave it."""
        await self._call.abort()

    async def _broken(self, error: DomainError) -> TerminalError:
        """Why the stream broke off; a page must not attach again and again to what is suspended or has ended."""
        if isinstance(error, Unavailable):
            error = await streams.guest_gone(sandbox=self._sandbox) or error
        return _failure(error)
