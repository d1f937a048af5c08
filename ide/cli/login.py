"""Which server, and with which token: from the environment, else from the file that `atoll login` writes."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import NotSignedIn


@dataclass(frozen=True, slots=True)
class Login:
    """A server's origin, a token for it, and the organization to act in ("": the token's)."""

    url: str
    token: str
    organization: str = ""


def path() -> Path:
    """Where the login is kept."""
    folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(folder).expanduser() / "atoll" / "login.json"


def url_default() -> str:
    """The server that is meant when none is named, or nothing."""
    return os.environ.get("ATOLL_URL") or os.environ.get("DENO_DEPLOY_ENDPOINT") or _kept().get("url", "")


def read() -> Login:
    """The login to use. NotSignedIn.

    A server from the environment never gets the token of another one that is in the file.
    """
    url, kept = url_default().rstrip("/"), _kept()
    token = os.environ.get("ATOLL_TOKEN") or os.environ.get("DENO_DEPLOY_TOKEN") or ""
    if not token and kept.get("url") == url:
        token = kept.get("token", "")
    if not url or not token:
        raise NotSignedIn("you are not signed in: run atoll login https://your-server")
    organization = os.environ.get("ATOLL_ORGANIZATION") or os.environ.get("DENO_DEPLOY_ORG") or ""
    return Login(url, token, organization)


def write(login: Login) -> None:
    """Keep it, for the owner's eyes only."""
    target = path()
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(asdict(login), file)
    beside.replace(target)


def forget() -> Login | None:
    """Remove what is kept, and return it."""
    kept = _kept()
    path().unlink(missing_ok=True)
    return Login(**kept) if kept else None


def _kept() -> dict[str, str]:
    try:
        kept = json.loads(path().read_text())
    except (OSError, ValueError):
        return {}
    names = ("url", "token", "organization")
    return {name: str(kept.get(name, "")) for name in names} if isinstance(kept, dict) else {}
