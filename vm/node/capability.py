"""Capabilities: short-lived, signed statements of which verbs their bearer may use on which machine.

A capability is `base64url(JSON {"machine", "verbs", "expires"}) "." base64url(HMAC-SHA256 of the first part)`. The
control plane holds the key and mints one for each call; the node checks it and keeps no list.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Iterable

from vm.errors import NotAllowed

ANY = "*"
LIFETIME = 60.0
MAX_LENGTH = 2048


def mint(key: bytes, *, machine: str, verbs: Iterable[str], expires: float) -> str:
    """A capability for these verbs on `machine` (ANY for every machine) until `expires`, in epoch seconds."""
    body = _encode(json.dumps({"machine": machine, "verbs": sorted(verbs), "expires": expires}).encode())
    return f"{body}.{_encode(_sign(key, body))}"


def require(key: bytes, token: object, *, machine: str, verb: str, now: float | None = None) -> None:
    """Raise NotAllowed unless `token` is ours, has not expired and covers `verb` on `machine` ("" for the host)."""
    if not isinstance(token, str) or len(token) > MAX_LENGTH:
        raise NotAllowed("no capability")
    body, _, signature = token.partition(".")
    try:
        signed = hmac.compare_digest(_decode(signature), _sign(key, body))
    except (ValueError, binascii.Error):
        signed = False
    if not signed:
        raise NotAllowed("the capability is not signed by this installation's key")
    claims = json.loads(_decode(body))
    if claims["expires"] < (time.time() if now is None else now):
        raise NotAllowed("the capability has expired; are the clocks right?")
    if verb not in claims["verbs"] or claims["machine"] not in (ANY, machine):
        raise NotAllowed(f"the capability does not cover {verb} here")


def _sign(key: bytes, body: str) -> bytes:
    return hmac.new(key, body.encode(), hashlib.sha256).digest()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
