"""The JSON of what sandboxes may reach and reached."""

from __future__ import annotations

from typing import Annotated, Literal

from ninja import Field, Schema

Pattern = Annotated[str, Field(max_length=600)]
Patterns = Annotated[list[Pattern], Field(max_length=1000)]
VerdictName = Literal["allowed", "denied", "failed", "cut"]
WindowName = Literal["hour", "day", "week"]


class DenialOut(Schema):
    """A denial, or with `waits_until` a connection that waits for an answer, or an alert, which held nothing up.

    `remedy` is what would let it through: `allow` a pattern more, a `rule` less, and so on.
    """

    id: int
    kind: Literal["connection", "request", "alert"]
    sandbox: str
    at: str
    host: str
    port: int
    pattern: str
    rule: str
    detail: str
    remedy: Literal["allow", "rule", "organization_rule", "administrator", "done", ""]
    waits_until: str | None


class NetworkOut(Schema):
    """What a sandbox may reach; `allow_net` null: every public host. Deny rules go before.

    `ask_net`: a connection to a host that no list names waits for a while, to be allowed or denied.
    """

    allow_net: list[str] | None
    deny_net: list[str]
    ask_net: bool
    organization_deny: list[str]
    version: int
    denials: list[DenialOut]


class NetworkChanged(NetworkOut):
    """The same after a change; `applied` false: its host does not answer, and is told as soon as it does."""

    applied: bool


class NetworkIn(Schema):
    """Another policy; `version` of the one that was looked at, so that nobody's change is lost."""

    allow_net: Patterns | None
    deny_net: Patterns = Field(default_factory=list)
    ask_net: bool = False
    version: int | None = None


class PatternsIn(Schema):
    """Patterns of hosts."""

    patterns: Patterns


class PatternProblem(Schema):
    """What is wrong with a pattern, by its place from 0."""

    place: int
    message: str


class ConnectionOut(Schema):
    """A connection or request that has ended; bytes as the sandbox sent and received them."""

    number: int
    at: str
    kind: Literal["connection", "request", "alert"]
    host: str
    port: int
    verdict: VerdictName
    rule: str
    detail: str
    sent: int
    received: int
    seconds: float
    method: str
    path: str
    status: int


class ConnectionFilter(Schema):
    """Which connections: with a number between these, whose host holds `host`, that ended up so."""

    after: int = 0
    before: int | None = None
    host: str = Field(default="", max_length=255)
    verdict: VerdictName | Literal[""] = ""
    limit: int = Field(default=100, ge=1, le=500)


class AmountsOut(Schema):
    """Connections, how many of them were denied or cut, and bytes."""

    connections: int
    denied: int
    sent: int
    received: int


class NetworkPeriod(AmountsOut):
    """A period that begins `at`."""

    at: str


class HostOut(AmountsOut):
    """A host and port, and when the last connection to it began."""

    host: str
    port: int
    last: str


class NetworkSummary(Schema):
    """A window of time in periods of `minutes`, oldest first, and the hosts that had most bytes."""

    minutes: int
    total: AmountsOut
    series: list[NetworkPeriod]
    hosts: list[HostOut]


class ProposalOut(Schema):
    """Patterns that allow what was reached; so many `hosts_left_out` were too many to list."""

    patterns: list[str]
    hosts_left_out: int


class NetworkDefaults(Schema):
    """What new sandboxes may reach where nobody says, and what none of the organization ever may."""

    allow_net: Patterns | None
    deny_net: Patterns


class HostListOut(Schema):
    """Patterns under a name."""

    id: str
    name: str
    note: str
    patterns: list[str]
