"""Lets a program without a browser act as a person: it shows a code, the person confirms it on a page (RFC 8628)."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from django.db import transaction
from django.utils import timezone

from sandboxes.errors import DomainError, NotFound, QuotaExceeded
from sandboxes.models import DeviceLogin, User
from sandboxes.permissions import Actor
from sandboxes.services import accounts, tokens
from sandboxes.services.accounts import digest

LIFETIME = timedelta(minutes=10)
INTERVAL_SECONDS = 2
"""Between two questions of the program."""
MOST = 500
"""Programs that may wait at once: anybody can ask, so there is an end to the rows he makes."""
SCOPES = ("read", "sandboxes")
TOKEN_DAYS = 90
# Without vowels, so that no code is a word, and without what is read as something else (RFC 8628, 6.1).
_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a login; the secret of its token is told once."""

    state: Literal["pending", "granted", "denied", "expired"]
    secret: str = ""
    organization: str = ""


def device_login_begin(*, client_name: str) -> tuple[DeviceLogin, str]:
    """A login that waits for its person, and the secret by which the program asks for it. QuotaExceeded."""
    secret = secrets.token_urlsafe(32)
    now = timezone.now()
    DeviceLogin.objects.filter(expires_at__lt=now).delete()
    if DeviceLogin.objects.count() >= MOST:
        raise QuotaExceeded("too many programs wait for their person: try again in some minutes", retry_after=60)
    letters = "".join(secrets.choice(_LETTERS) for _ in range(8))
    name = "".join(letter for letter in client_name if letter.isprintable()).strip()[:60]
    login = DeviceLogin.objects.create(
        digest=digest(secret),
        user_code=f"{letters[:4]}-{letters[4:]}",
        client_name=name or "a program",
        expires_at=now + LIFETIME,
    )
    return login, secret


def device_login_get(*, user_code: str) -> DeviceLogin:
    """The login that shows that code and still waits, however it was typed. NotFound."""
    letters = "".join(letter for letter in user_code.upper() if letter.isalpha())[:9]
    login = DeviceLogin.objects.filter(
        user_code=f"{letters[:4]}-{letters[4:]}", expires_at__gt=timezone.now(), user=None, denied=False
    ).first()
    if login is None:
        raise NotFound("no program waits with this code: it was mistyped, used, or is older than ten minutes")
    return login


def device_login_decide(*, user_code: str, user: User, organization_id: int, allowed: bool) -> DeviceLogin:
    """Let the program in as that person in that organization, or not. NotFound."""
    login = device_login_get(user_code=user_code)
    decision = {"user": user, "organization_id": organization_id} if allowed else {"denied": True}
    # One decision: two tabs may be open
    if not DeviceLogin.objects.filter(pk=login.pk, user=None, denied=False).update(**decision):
        raise NotFound("this code was answered already")
    return login


def device_login_take(*, secret: str) -> Answer:
    """What became of it; once it is granted the token is made, and the login is gone. Forbidden for a viewer."""
    with transaction.atomic():
        rows = DeviceLogin.objects.select_related("user", "organization")
        login = rows.filter(digest=digest(secret), expires_at__gt=timezone.now()).first()
        if login is None:
            return Answer("expired")
        if login.denied:
            return Answer("denied")
        if login.user is None or login.organization is None:
            return Answer("pending")
        # Whoever deletes the row makes the token: the same question may be asked twice at once
        if not DeviceLogin.objects.filter(pk=login.pk).delete()[0]:
            return Answer("expired")
        try:
            actor: Actor = accounts.actor_for_user(user=login.user, organization=login.organization.slug)
            _token, made = tokens.token_create(
                actor=actor, name=f"atoll on {login.client_name}", scopes=SCOPES, expires_in_days=TOKEN_DAYS
            )
        except DomainError:
            # He has left the organization meanwhile, or may not have tokens
            return Answer("denied")
        return Answer("granted", made, login.organization.slug)
