"""Who may visit an exposed port: a cookie of our own once somebody has shown that he may, and how he shows it.

Visitors of two exposures may have one host name, and share it with Atoll's own pages: cookies know no ports. So what a
server in a guest hears and says of cookies that are ours is left out.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import math
import time
from dataclasses import dataclass, replace
from urllib.parse import parse_qs, quote

from django.contrib.auth.hashers import check_password
from django.core import signing

from ide.gateway.http1 import Headers, Request, Response
from sandboxes.background import spawn
from sandboxes.config import config
from sandboxes.database import in_thread
from sandboxes.models import Access, Exposure
from sandboxes.selectors.exposures import exposure_visitor_allowed
from sandboxes.services.accounts import digest

OURS = b"atoll_"
"""How the names of all our cookies begin."""
ENTER = "/.atoll/enter"
SALT = "atoll.exposure"
TICKET_SALT = "atoll.exposure.ticket"
TICKET_SECONDS = 60
COOKIE_SECONDS = 12 * 3600
_RECHECK_SECONDS = 5.0
_REMEMBERED = 1024
TRIES = 20
"""Wrong passwords of one visitor's address for one exposure within a minute; each costs a third of a second, too."""
TRIES_OF_ALL = 200
_TRIES_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the visitor gets instead of the port."""

    status: int
    text: str
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class Admitted:
    """He may; `headers` are for him, and `request` goes on."""

    request: Request
    headers: Headers = ()


class Guard:
    """Decides about visitors, and remembers for seconds what it has found out."""

    def __init__(self) -> None:
        self._members: dict[tuple[int, int], tuple[float, bool]] = {}
        self._passwords: dict[tuple[int, bytes], float] = {}
        self._checks: dict[tuple[int, bytes], asyncio.Task[bool]] = {}
        self._tried: dict[tuple[int, str], list[float]] = {}

    async def admit(self, exposure: Exposure, request: Request, address: str) -> Admitted | Answer:
        """Whether this request from that address goes on. DatabaseError."""
        if exposure.access == Access.PUBLIC:
            return Admitted(request)
        path, _, query = request.target.decode("latin-1").partition("?")
        if path == ENTER:
            return await self._enter(exposure, parse_qs(query))
        if await self._has_cookie(exposure, request):
            if not _same_origin(request):
                return Answer(403, "another site's page asks for this")
            return Admitted(request)
        if exposure.access == Access.PASSWORD:
            return await self._by_password(exposure, request, address)
        if exposure.access == Access.ORGANIZATION:
            here = f"{config()['origin']}/exposed/{exposure.public_id}?next={quote(request.target.decode('latin-1'))}"
            if request.method == b"GET" and b"text/html" in request.get(b"accept"):
                return Answer(303, f"sign in: {here}", ((b"Location", here.encode()),))
            return Answer(401, f"only for members who are signed in: open {here} in a browser")
        return Answer(401, "only for those who have the link")

    async def _has_cookie(self, exposure: Exposure, request: Request) -> bool:
        value = _cookies(request).get(_cookie_name(exposure), "")
        try:
            said = signing.loads(value, salt=SALT, max_age=COOKIE_SECONDS) if value else {}
        except signing.BadSignature:
            return False
        if said.get("exposure") != exposure.public_id:
            return False
        if exposure.access == Access.ORGANIZATION:
            return await self._is_member(exposure, int(said.get("user") or 0))
        return True

    async def _is_member(self, exposure: Exposure, user: int) -> bool:
        key, now = (exposure.organization_id, user), time.monotonic()
        seen = self._members.get(key)
        if seen is None or now - seen[0] > _RECHECK_SECONDS:
            if len(self._members) >= _REMEMBERED:
                self._members.clear()
            allowed = await in_thread(exposure_visitor_allowed, organization_id=exposure.organization_id, user_id=user)
            seen = self._members[key] = (now, allowed)
        return seen[1]

    async def _enter(self, exposure: Exposure, query: dict[str, list[str]]) -> Answer:
        """With a ticket of our own pages', or the token of a link; the cookie is all that is needed from then on."""
        user: int | None = None
        if exposure.access == Access.ORGANIZATION:
            try:
                said = signing.loads(query.get("ticket", [""])[-1], salt=TICKET_SALT, max_age=TICKET_SECONDS)
            except signing.BadSignature:
                return Answer(403, "this ticket is too old, or none: go back and try again")
            user = int(said["user"])
            if said["exposure"] != exposure.public_id or not await self._is_member(exposure, user):
                return Answer(403, "this is not for you")
        elif exposure.access != Access.LINK or not _equal(digest(query.get("token", [""])[-1]), exposure.secret_hash):
            return Answer(403, "this link is none")
        target = query.get("next", ["/"])[-1]
        if not target.startswith("/") or target.startswith(("//", "/\\")) or not target.isprintable():
            target = "/"
        headers = ((b"Location", quote(target, safe="/?&=%#:@!$'()*+,;~[]").encode()), _cookie(exposure, user))
        return Answer(303, "come in", headers)

    async def _by_password(self, exposure: Exposure, request: Request, address: str) -> Admitted | Answer:
        given = _basic(request)
        if given is None:
            return Answer(
                401, "a password is needed", ((b"WWW-Authenticate", b'Basic realm="Atoll", charset="UTF-8"'),)
            )
        # Its check is slow on purpose, and programs send it with each request, many at once
        key, now = (exposure.pk, hashlib.sha256(given.encode()).digest()), time.monotonic()
        if now - self._passwords.get(key, float("-inf")) > COOKIE_SECONDS:
            if (checking := self._checks.get(key)) is None:
                if wait := self._wait(exposure, address, now):
                    return Answer(429, "too many wrong passwords: wait a minute", ((b"Retry-After", b"%d" % wait),))
                # Counted before it is known to be wrong: else a hundred at once were looked at
                for whose in (address, ""):
                    self._tries(exposure, whose, now).append(now)
                checking = spawn(self._check(exposure, given, address, now), name=f"password of {exposure.public_id}")
                self._checks[key] = checking
                checking.add_done_callback(lambda done: self._checks.pop(key, None))
            if not await asyncio.shield(checking):
                return Answer(401, "that is not it", ((b"WWW-Authenticate", b'Basic realm="Atoll", charset="UTF-8"'),))
        # It is none of the server's business
        headers = tuple((name, value) for name, value in request.headers if name.lower() != b"authorization")
        return Admitted(replace(request, headers=headers), (_cookie(exposure, None),))

    async def _check(self, exposure: Exposure, given: str, address: str, now: float) -> bool:
        if not await in_thread(check_password, given, exposure.secret_hash):
            return False
        for whose in (address, ""):
            if now in (tried := self._tries(exposure, whose, now)):
                tried.remove(now)
        if len(self._passwords) >= _REMEMBERED:
            self._passwords.clear()
        self._passwords[exposure.pk, hashlib.sha256(given.encode()).digest()] = now
        return True

    def _wait(self, exposure: Exposure, address: str, now: float) -> int:
        """Seconds until another password may be tried, 0 for at once."""
        for whose, most in ((address, TRIES), ("", TRIES_OF_ALL)):
            tried = self._tries(exposure, whose, now)
            if len(tried) >= most:
                return math.ceil(tried[-most] + _TRIES_SECONDS - now)
        return 0

    def _tries(self, exposure: Exposure, whose: str, now: float) -> list[float]:
        """When passwords were tried within the last minute from that address, or from any, oldest first."""
        late = now - _TRIES_SECONDS
        if len(self._tried) >= _REMEMBERED:
            self._tried = {key: tried for key, tried in self._tried.items() if tried and tried[-1] > late}
        tried = self._tried.setdefault((exposure.pk, whose), [])
        tried[:] = [when for when in tried if when > late]
        return tried


def without_ours(request: Request) -> Request:
    """The request without cookies that are ours: with them a guest could visit other places as this visitor."""
    headers = []
    for name, value in request.headers:
        if name.lower() == b"cookie":
            kept = [one for one in value.split(b";") if not one.strip().lower().startswith(OURS)]
            if not kept:
                continue
            value = b";".join(kept).strip()
        headers.append((name, value))
    return replace(request, headers=tuple(headers))


def answer_without_ours(response: Response) -> Response:
    """The answer without cookies that would become ours."""
    headers = tuple(
        (name, value)
        for name, value in response.headers
        if not (name.lower() == b"set-cookie" and value.strip().lower().startswith(OURS))
    )
    return replace(response, headers=headers)


def _cookie_name(exposure: Exposure) -> str:
    return f"{OURS.decode()}{exposure.public_id}"


def _cookie(exposure: Exposure, user: int | None) -> tuple[bytes, bytes]:
    value = signing.dumps({"exposure": exposure.public_id, "user": user}, salt=SALT)
    said = f"{_cookie_name(exposure)}={value}; Path=/; Max-Age={COOKIE_SECONDS}; Secure; HttpOnly; SameSite=Lax"
    return (b"Set-Cookie", said.encode())


def _cookies(request: Request) -> dict[str, str]:
    pairs = [one.partition("=") for value in request.all(b"cookie") for one in value.decode("latin-1").split(";")]
    return {name.strip(): value.strip() for name, _, value in pairs}


def _same_origin(request: Request) -> bool:
    origin = request.get(b"origin")
    return not origin or origin.lower() == b"https://" + request.get(b"host").lower()


def _basic(request: Request) -> str | None:
    kind, _, rest = request.get(b"authorization").partition(b" ")
    if kind.lower() != b"basic":
        return None
    try:
        _, _, password = base64.b64decode(rest.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return None
    return password[:1000]


def _equal(one: str, other: str) -> bool:
    return hashlib.sha256(one.encode()).digest() == hashlib.sha256(other.encode()).digest()
