"""What a caller of the domain may react to.

DomainError                base: `code` is stable, `message` is for people, `fields` are for programs
├── NotFound               no such thing, or not in the actor's organization
├── Forbidden              known, but the actor's role or scopes do not cover the action
├── Invalid                a value is out of its bounds; the message says which and why
├── QuotaExceeded          the organization is at its limit
├── Conflict               the thing is in a state in which this cannot be done (`state` says which)
│   ├── VolumeInUse        another sandbox has the volume; one that is stopping gives it up
│   └── SlugInUse          something of that kind and name is there already
├── NotRunning             the sandbox has no running machine; the message says why
│   └── Suspended          it has one that can be resumed
├── Unavailable            the host or the guest does not answer now; trying again later may work
├── NotAvailable           nothing is wrong: Atoll does not do this (yet)
├── SecretsLocked          the key that secrets are sealed with is not there; only an administrator of the host can help
├── NotAuthenticated       nobody is signed in, and there is no token
├── InvalidToken           unknown, expired or revoked token
└── LinkUsed               a sign-in link that is unknown, too old or used
"""

from __future__ import annotations

from typing import Any


class DomainError(Exception):
    """Base of this tree."""

    code = "ERROR"
    text = "something went wrong"

    def __init__(self, message: str = "", **fields: Any) -> None:
        self.message = message or self.text
        self.fields = fields
        super().__init__(self.message)


class NotFound(DomainError):
    """No such thing."""

    code = "NOT_FOUND"
    text = "there is no such object in this organization"


class Forbidden(DomainError):
    """Not with this role or token."""

    code = "FORBIDDEN"
    text = "your role or your token's scopes do not allow this"


class Invalid(DomainError):
    """A value is out of bounds."""

    code = "BAD_REQUEST"
    text = "a value is not acceptable"


class QuotaExceeded(DomainError):
    """At the limit."""

    code = "LIMIT_EXCEEDED"
    text = "the organization is at its limit"


class Conflict(DomainError):
    """Not in this state."""

    code = "CONFLICT"
    text = "this cannot be done in the present state"


class VolumeInUse(Conflict):
    """Another sandbox has it."""

    text = "another sandbox has the volume"


class SlugInUse(Conflict):
    """The name is taken."""

    code = "SLUG_ALREADY_IN_USE"
    text = "a volume or snapshot of that name is there already"


class NotRunning(DomainError):
    """No running machine."""

    code = "NOT_RUNNING"
    text = "the sandbox is not running"


class Suspended(NotRunning):
    """Nobody runs it now, but it can go on where it was."""

    code = "SUSPENDED"
    text = "the sandbox is suspended: resume it"


class Unavailable(DomainError):
    """Host or guest do not answer."""

    code = "UNAVAILABLE"
    text = "the machine's host does not answer"


class NotAvailable(DomainError):
    """Atoll does not do this."""

    code = "NOT_AVAILABLE"
    text = "Atoll does not do this yet"


class SecretsLocked(DomainError):
    """Sealed values cannot be opened."""

    code = "SECRETS_LOCKED"
    text = "secrets cannot be opened: their key is missing"


class NotAuthenticated(DomainError):
    """Neither session nor token."""

    code = "NOT_AUTHENTICATED"
    text = "sign in, or send a token"


class InvalidToken(DomainError):
    """Not a token that is valid now."""

    code = "INVALID_TOKEN"
    text = "the token is unknown, expired or revoked"


class LinkUsed(DomainError):
    """Not a sign-in link that works."""

    code = "LINK_USED"
    text = "this sign-in link is unknown, too old, or was used already"
