"""What ends a command, and the exit status that says it to scripts.

Failure            1: the server or the machine said no, with its message
├── NotSignedIn    3: there is no token, or it is good no more
├── NotFound       4: no such sandbox, file or other thing
├── Refused        5: not allowed, at a limit, or not in the present state
└── Unreachable    6: no server answers
2 is a command that was typed wrongly.
"""

from __future__ import annotations


class Failure(Exception):
    """Something went wrong; the text is for the person."""

    status = 1


class NotSignedIn(Failure):
    """No token, or one that is good no more."""

    status = 3


class NotFound(Failure):
    """No such thing."""

    status = 4


class Refused(Failure):
    """Not allowed, at a limit, or not now."""

    status = 5


class Unreachable(Failure):
    """Nobody answers."""

    status = 6


def failure_of(http_status: int, message: str) -> Failure:
    """The failure that an answer's status stands for."""
    kinds = {401: NotSignedIn, 403: Refused, 404: NotFound, 409: Refused, 429: Refused}
    if http_status == 401:
        message += " (atoll login)"
    return kinds.get(http_status, Failure)(message)
