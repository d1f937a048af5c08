"""Keys by which people log in over SSH: added, removed, and certificates issued that are good for hours."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import timedelta

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from sandboxes import audit, permissions, ssh_keys
from sandboxes.errors import Conflict, Forbidden, Invalid, NotFound, QuotaExceeded
from sandboxes.models import Sandbox, SandboxState, SshKey, SshKeyKind, User
from sandboxes.permissions import Actor
from sandboxes.selectors.actors import actor_still_allowed
from sandboxes.services import accounts
from sandboxes.ssh_keys import BadKey

MOST = 50
"""Keys of one person."""
LONGEST_HOURS = 24
SEEN_EVERY = timedelta(minutes=1)


def ssh_key_add(*, actor: Actor, name: str, public_key: str, authority: bool = False) -> SshKey:
    """A key that logs in as the actor wherever he may use sandboxes, or an authority whose certificates do.

    Invalid for what is no key; Conflict for one that he has; QuotaExceeded; Forbidden for an organization's token.
    """
    user = _person(actor)
    try:
        line = ssh_keys.parse(public_key)
    except BadKey as error:
        raise Invalid(str(error), field="public_key") from error
    name = name.strip() or (public_key.split(None, 2)[2].strip() if len(public_key.split(None, 2)) > 2 else "key")
    if len(name) > 100:
        raise Invalid("a key's name has at most 100 characters", field="name")
    with transaction.atomic():
        return _insert(actor, user, name, line, SshKeyKind.AUTHORITY if authority else SshKeyKind.KEY)


def _insert(actor: Actor, user: User, name: str, line: str, kind: SshKeyKind, salt: str = "") -> SshKey:
    # One after the other, so that the number holds
    User.objects.select_for_update(no_key=True).get(pk=user.pk)
    fingerprint = ssh_keys.fingerprint(line)
    if SshKey.objects.filter(user=user, fingerprint=fingerprint).exists():
        raise Conflict("this key is yours already")
    if SshKey.objects.filter(user=user).count() >= MOST:
        raise QuotaExceeded(f"{MOST} keys are enough for one person: remove some first")
    key = SshKey.objects.create(user=user, name=name, kind=kind, public_key=line, fingerprint=fingerprint, salt=salt)
    _record(actor, "ssh_key.add", key)
    return key


def ssh_key_remove(*, actor: Actor, key_id: int) -> None:
    """It logs in no more, and who is in by it is out within seconds; an authority's certificates with it. NotFound."""
    user = _person(actor)
    with transaction.atomic():
        key = SshKey.objects.filter(user=user, pk=key_id).first()
        if key is None:
            raise NotFound("there is no such key of yours")
        _record(actor, "ssh_key.remove", key)
        key.delete()


def ssh_certificate_issue(*, actor: Actor, public_key: str, hours: int = 8) -> str:
    """A certificate that lets a key log in as the actor for some hours (at most 24), as a line for `id_...-cert.pub`.

    It is signed by an authority of the account's own, which is among its keys: removing that ends all of them.
    Invalid; Forbidden for an organization's token.
    """
    user = _person(actor)
    if not 1 <= hours <= LONGEST_HOURS:
        raise Invalid(f"a certificate is good for 1 to {LONGEST_HOURS} hours", field="hours")
    try:
        line = ssh_keys.parse(public_key)
        with transaction.atomic():
            signer = SshKey.objects.filter(user=user, kind=SshKeyKind.ISSUED).first()
            if signer is None:
                salt = secrets.token_hex(16)
                _, own = ssh_keys.authority(settings.SECRET_KEY, salt)
                signer = _insert(actor, user, "certificates of this account", own, SshKeyKind.ISSUED, salt)
            private, _ = ssh_keys.authority(settings.SECRET_KEY, signer.salt)
            made = ssh_keys.certificate(
                public_key=line,
                signer=private,
                name=user.email,
                lifetime=timedelta(hours=hours),
                serial=secrets.randbits(63),
            )
            _record(actor, "ssh_certificate.issue", signer, certified=ssh_keys.fingerprint(line), hours=hours)
            return made
    except BadKey as error:
        raise Invalid(str(error), field="public_key") from error


def ssh_key_list(*, actor: Actor) -> list[SshKey]:
    """The actor's own, newest first."""
    return list(SshKey.objects.filter(user=_person(actor, edit=False)).order_by("-created_at", "-pk"))


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """Who logged in, by which key, and to what."""

    sandbox: Sandbox
    actor: Actor
    key_id: int


def ssh_login(*, public_id: str, public_key: str, authority: bool = False) -> LoggedIn | None:
    """Whom a key, or the authority of a certificate, stands for at that sandbox; None for nobody who may use it."""
    sandbox = Sandbox.objects.filter(public_id=public_id).exclude(state=SandboxState.DELETED).first()
    if sandbox is None:
        return None
    kinds = [SshKeyKind.AUTHORITY, SshKeyKind.ISSUED] if authority else [SshKeyKind.KEY]
    try:
        fingerprint = ssh_keys.fingerprint(public_key)
    except (BadKey, IndexError):
        return None
    keys = SshKey.objects.filter(fingerprint=fingerprint, kind__in=kinds, user__is_active=True).select_related("user")
    for key in keys:
        membership = key.user.memberships.filter(organization_id=sandbox.organization_id).first()
        if membership is None:
            continue
        actor = accounts.actor_of(user=key.user, membership=membership)
        if permissions.allows(actor, "sandbox.use", sandbox.organization_id):
            return LoggedIn(sandbox, actor, key.pk)
    return None


def ssh_login_record(*, login: LoggedIn) -> None:
    """Somebody is in: note it for the audit and the key."""
    now = timezone.now()
    with transaction.atomic():
        key = SshKey.objects.filter(pk=login.key_id).first()
        if key is None:
            return
        if key.last_used_at is None or now - key.last_used_at > SEEN_EVERY:
            SshKey.objects.filter(pk=key.pk).update(last_used_at=now)
        audit.record(
            actor=login.actor,
            organization_id=login.sandbox.organization_id,
            action="sandbox.ssh",
            target=login.sandbox.public_id,
            key=key.fingerprint,
        )


def ssh_login_allowed(*, login: LoggedIn) -> bool:
    """Whether he would still be let in: the key is there, and he may use the sandbox."""
    return SshKey.objects.filter(pk=login.key_id).exists() and actor_still_allowed(
        actor=login.actor, action="sandbox.use"
    )


def _person(actor: Actor, *, edit: bool = True) -> User:
    permissions.require(actor, "ssh_key.edit" if edit else "ssh_key.view", actor.organization_id)
    if actor.user_id is None:
        raise Forbidden("an organization's token has no keys: they are people's")
    return User.objects.get(pk=actor.user_id)


def _record(actor: Actor, action: str, key: SshKey, **detail: object) -> None:
    audit.record(
        actor=actor,
        organization_id=actor.organization_id,
        action=action,
        target=key.fingerprint,
        name=key.name,
        kind=key.kind,
        **detail,
    )
