"""The errors a call can answer with, as the SDK's protocol names them.

Refusal                    an error object: constructorName, message, code, name
└── gone()                 the process that a call names has ended or never was
InvalidParams              the parameters do not fit; carries the issues
"""

from __future__ import annotations

import errno
import os

_CONSTRUCTORS = {
    errno.ENOENT: "NotFound",
    errno.EACCES: "PermissionDenied",
    errno.EPERM: "PermissionDenied",
    errno.EEXIST: "AlreadyExists",
    errno.EISDIR: "IsADirectory",
    errno.ENOTDIR: "NotADirectory",
    errno.ELOOP: "FilesystemLoop",
    errno.EADDRINUSE: "AddrInUse",
    errno.ECONNREFUSED: "ConnectionRefused",
    errno.ECONNRESET: "ConnectionReset",
    errno.EPIPE: "BrokenPipe",
    errno.ETIMEDOUT: "TimedOut",
    errno.ENETUNREACH: "NetworkUnreachable",
}


class Refusal(Exception):
    """What the call answers instead of a value; `more` are fields that only some errors have."""

    def __init__(self, constructor: str, message: str, code: str | None = None, **more: str | None) -> None:
        super().__init__(message)
        self.constructor = constructor
        self.message = message
        self.code = code
        self.more = more

    def as_json(self) -> dict[str, object]:
        """The error object."""
        return {"constructorName": self.constructor, "message": self.message, "code": self.code, **self.more}


class InvalidParams(Exception):
    """The parameters of a call do not fit its method."""

    def __init__(self, issues: list[dict[str, object]]) -> None:
        super().__init__("Invalid params")
        self.issues = issues


def gone(pid: int) -> Refusal:
    """The answer about a process that has ended or is unknown; the SDKs look for exactly this pair."""
    return Refusal("TypeError", f"The process {pid} has already exited", "ENOENT")


def bad_resource(what: str) -> Refusal:
    """The answer about a handle that is not open."""
    return Refusal("BadResource", what, "EBADF")


def from_os_error(error: OSError, action: str = "") -> Refusal:
    """An operating system's error as the SDK's protocol maps it."""
    number = error.errno or 0
    code = errno.errorcode.get(number)
    text = f"{os.strerror(number)} (os error {number})" if number else str(error)
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    about = f": {action} '{"' -> '".join(names)}'" if names else ""
    return Refusal(_CONSTRUCTORS.get(number, "Error"), text + about, code)
