"""The JSON of exposed ports and of SSH under `/api/v1/`; times are ISO 8601 in UTC."""

from __future__ import annotations

from typing import Literal

from ninja import Schema

AccessName = Literal["public", "organization", "link", "password"]


class ExposureOut(Schema):
    """One way into a sandbox. Logins by SSH have no `url`; what leads nowhere yet has neither `port` nor `pid`."""

    id: str
    kind: Literal["http", "ssh"]
    url: str | None
    port: int | None
    pid: int | None
    access: AccessName
    sdk: bool
    expires_at: str | None
    created_by: str
    created_at: str


class ExposureIn(Schema):
    """Which port, and for whom. `password` for access by password, `hours` (1 to 744) for a link."""

    port: int
    access: AccessName = "organization"
    password: str = ""
    hours: int = 24


class ExposureMade(Schema):
    """The exposure; `link`, where access is by one, is shown this once."""

    exposure: ExposureOut
    link: str | None


class PortOut(Schema):
    """A port that a program listens on."""

    port: int
    address: str
    command: str


class SshAddress(Schema):
    """`ssh -p port user@host`."""

    host: str
    port: int
    user: str


class SshKeyOut(Schema):
    """A public key of one's own. `issued`: the account's own authority, which signs certificates."""

    id: int
    name: str
    kind: Literal["key", "authority", "issued"]
    public_key: str
    fingerprint: str
    created_at: str
    last_used_at: str | None


class SshKeyIn(Schema):
    """A line as in a file that ends in .pub; its comment is the name where none is given."""

    public_key: str
    name: str = ""
    authority: bool = False


class SshCertificateIn(Schema):
    """Which key, and for how many hours (1 to 24)."""

    public_key: str
    hours: int = 8


class SshCertificateOut(Schema):
    """A line for a file such as id_ed25519-cert.pub."""

    certificate: str
