"""Session cookie or bearer token -> Actor, and the guard that keeps other sites' pages from our WebSockets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

import structlog
from channels.security.websocket import WebsocketDenier
from django.conf import settings
from django.contrib.auth import get_user
from django.db import DatabaseError
from django.http import HttpRequest
from django.http.request import split_domain_port, validate_host

from sandboxes.config import config
from sandboxes.database import in_thread
from sandboxes.errors import InvalidToken, NotAuthenticated
from sandboxes.permissions import Actor
from sandboxes.selectors.actors import actor_still_allowed
from sandboxes.services import accounts, tokens

log = structlog.get_logger("atoll.auth")

RECHECK_SECONDS = 5.0
"""After which a removed member's, a revoked token's or an ended session's open sockets are closed at the latest."""
NOT_ALLOWED, SESSION_ENDED = 4403, 1012
"""Close codes. After the second a page connects again: another tab may have got it a new cookie meanwhile."""

type Scope = dict[str, Any]
type Application = Callable[[Scope, Any, Any], Awaitable[Any]]


def header(scope: Scope, name: bytes) -> str:
    """The last value of a header, or nothing; Latin-1 as HTTP has it."""
    for key, value in reversed(scope["headers"]):
        if key == name:
            return str(value.decode("latin-1"))
    return ""


def bearer(value: str) -> str:
    """The token in an Authorization header's value, or nothing."""
    kind, _, secret = value.partition(" ")
    return secret.strip() if kind.lower() == "bearer" else ""


async def actor_of_scope(scope: Scope) -> Actor:
    """Whoever the token of a WebSocket's handshake stands for. InvalidToken."""
    secret = bearer(header(scope, b"authorization"))
    if not secret:
        raise InvalidToken("there is no bearer token")
    return await in_thread(tokens.token_actor, secret=secret, organization=header(scope, b"x-deno-org"))


async def actor_of_session(scope: Scope, sandbox: str) -> Actor:
    """The signed-in person of a WebSocket, in the organization of that sandbox. NotAuthenticated, NotFound."""
    user = scope["user"]
    if not user.is_authenticated:
        raise NotAuthenticated
    return await in_thread(accounts.actor_for_sandbox, user=user, public_id=sandbox)


async def revoked(scope: Scope, actor: Actor, action: str) -> int:
    """Return once the actor may no longer do that, or his session has ended: the code to close with.

    For open sockets, which were asked only when they opened.
    """
    session = getattr(scope.get("session"), "session_key", None)
    while True:
        try:
            if not await in_thread(actor_still_allowed, actor=actor, action=action):
                return NOT_ALLOWED
            if session is not None and await in_thread(_person_of, session) != actor.user_id:
                return SESSION_ENDED
        except DatabaseError as error:
            # A database that is away for a moment ends nobody's terminal
            log.warning("access of an open socket could not be checked", error=str(error))
        await asyncio.sleep(RECHECK_SECONDS)


def _person_of(session: str) -> int | None:
    """Whom the session stands for now: nobody once it was signed out of, or the password is another."""
    request = HttpRequest()
    request.session = import_module(settings.SESSION_ENGINE).SessionStore(session)
    return get_user(request).pk


class SameOrigin:
    """Lets a WebSocket through only from a page of this installation.

    A cookie goes to every port of a host, so comparing host names alone would let any local server's page in.
    """

    def __init__(self, inner: Application) -> None:
        self.inner = inner

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> Any:
        """Pass on, or deny."""
        if self.allows(header(scope, b"origin"), header(scope, b"host")):
            return await self.inner(scope, receive, send)
        return await WebsocketDenier()(scope, receive, send)

    @staticmethod
    def allows(origin: str, host: str) -> bool:
        """Whether a page of `origin` may open a socket on `host`."""
        domain, _port = split_domain_port(host)
        if not domain or not validate_host(domain, settings.ALLOWED_HOSTS):
            return False
        if origin in config()["trusted_origins"]:
            return True
        parts = urlsplit(origin)
        return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
