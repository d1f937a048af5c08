"""How the gate hands a connection to an interceptor: a CONNECT on loopback that only they two can have made. Pure.

The gate has decided and looked the host up; the interceptor dials the one address that is named here. A connection that
is denied is handed over too, with the reason, so that a client that speaks TLS can be told.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import asdict, dataclass
from ipaddress import ip_address

from vm.egress.policy import Address, Decision

MAX_HEAD = 8192
ACCEPTED = b"HTTP/1.1 200 OK\r\n\r\n"
REFUSED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_HEAD = re.compile(
    rb"CONNECT ([a-z0-9._-]{1,253}):([0-9]{1,5}) HTTP/1\.1\r\n"
    rb"Proxy-Authorization: Bearer ([0-9a-f]{64})\r\n"
    rb"(?:Atoll-Address: ([0-9a-f.:]{2,45})\r\n)?"
    rb"(?:Atoll-Denied: ([A-Za-z0-9+/=]{4,6000})\r\n)?\r\n"
)


@dataclass(frozen=True, slots=True)
class HandOver:
    """One connection: whose, to which host, and either the `address` to dial or why it is `denied`."""

    token: str
    host: str
    port: int
    address: Address | None = None
    denied: Decision | None = None
    failed: bool = False


def head(handed: HandOver) -> bytes:
    """What the gate says before the guest's bytes."""
    lines = [f"CONNECT {handed.host}:{handed.port} HTTP/1.1", f"Proxy-Authorization: Bearer {handed.token}"]
    if handed.address is not None:
        lines.append(f"Atoll-Address: {handed.address}")
    if handed.denied is not None:
        decision = {**asdict(handed.denied), "sentence": handed.denied.sentence[:2000], "failed": handed.failed}
        lines.append(f"Atoll-Denied: {base64.b64encode(json.dumps(decision).encode()).decode()}")
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def read_head(data: bytes) -> HandOver:
    """The inverse of `head`. ValueError."""
    found = _HEAD.fullmatch(data)
    if found is None or (found[4] is None) is (found[5] is None):
        raise ValueError("this is no hand-over")
    denied, failed = None, False
    if found[5] is not None:
        try:
            said = json.loads(base64.b64decode(found[5], validate=True))
            denied = Decision(False, str(said["rule"]), str(said["sentence"]))
            failed = said["failed"] is True
        except (binascii.Error, KeyError, TypeError) as error:
            raise ValueError("this is no hand-over") from error
    return HandOver(
        token=found[3].decode(),
        host=found[1].decode(),
        port=int(found[2]),
        address=ip_address(found[4].decode()) if found[4] is not None else None,
        denied=denied,
        failed=failed,
    )
