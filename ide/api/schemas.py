"""The JSON of `/api/v1/`, from which the OpenAPI document is made; times are ISO 8601 in UTC."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Annotated, Any, Literal

from ninja import Field, Schema
from pydantic import SecretStr

StateName = Literal[
    "queued", "starting", "running", "suspending", "suspended", "resuming", "stopping", "stopped", "deleted"
]


class SandboxOut(Schema):
    """A sandbox or workspace."""

    id: str
    name: str
    kind: Literal["sandbox", "workspace"]
    state: StateName
    state_reason: str
    queue_position: int
    unresponsive: bool
    region: str
    memory_mb: int
    vcpus: int
    disk_gib: int
    labels: dict[str, str]
    session: bool
    stages: dict[str, float]
    created_at: str
    started_at: str | None
    stopped_at: str | None
    stop_at: str | None
    stop_reason: str | None
    stop_detail: str
    stopped_by: str | None
    creator: str
    origin: Literal["cold", "clone", "pool", "resume", "fork"] | None
    note: str
    next_step: Literal["resume", "start", "restore", ""]
    idle_minutes: int | None
    checkpoint_minutes: int | None
    active_at: str | None
    deleted_at: str | None
    restorable_until: str | None
    forked_from: str | None
    root: str | None
    network_version: int


class SandboxSecretIn(Schema):
    """A secret of a sandbox. The value is at most 64 KiB and never comes back."""

    name: str
    value: SecretStr
    hosts: list[str]
    places: list[PlaceName] = Field(default_factory=list)


class MountIn(Schema):
    """A volume or snapshot, by id or slug, and where to mount it; a volume `read_only`: its last snapshot."""

    volume: str
    path: str
    read_only: bool = False


Seconds = Annotated[int, Field(ge=1, le=100_000_000)]


class SandboxIn(Schema):
    """What to create."""

    name: str = ""
    kind: Literal["sandbox", "workspace"] = "workspace"
    memory_mb: int = 1280
    labels: dict[str, str] = Field(default_factory=dict)
    env: dict[str, str] = Field(default_factory=dict)
    lifetime_seconds: Seconds | Literal["unlimited"] | None = None
    allow_net: list[str] | None = None
    deny_net: list[str] = Field(default_factory=list)
    ask_net: bool = False
    secrets: list[SandboxSecretIn] = Field(default_factory=list)
    volumes: list[MountIn] = Field(default_factory=list)
    root: str = ""


class SandboxChange(Schema):
    """What to change; absent stays."""

    name: str | None = None
    labels: dict[str, str] | None = None
    idle_minutes: int | None = None


class Fork(Schema):
    """What the copy is to be called, and how long it is to live where not as long as the original."""

    name: str = ""
    lifetime_seconds: Seconds | None = None


class Extension(Schema):
    """Seconds from now for which it is to live at least."""

    seconds: int = Field(ge=1, le=100_000_000)


class TimelineOut(Schema):
    """Something that happened to a sandbox.

    `duration_seconds`: how long the state lasted that it began; null while it lasts, and for what happened within one.
    """

    id: int
    at: str
    state: StateName
    text: str
    cause: str | None
    actor: str
    detail: str
    stages: dict[str, float]
    duration_seconds: float | None


class Resources(Schema):
    """What its machine uses: bytes, load averages of 1, 5 and 15 minutes, and processor seconds since it was made."""

    memory_total: int
    memory_available: int
    disk_total: int
    disk_free: int
    load: list[float]
    processes: int
    cpu_seconds: float


class MemberOut(Schema):
    """A member of the organization."""

    id: int
    email: str
    name: str
    role: str
    created_at: str
    you: bool
    waiting: bool
    invited_until: str | None


RoleName = Literal["owner", "admin", "member", "viewer"]


class MemberIn(Schema):
    """Whom to invite."""

    email: str
    role: RoleName = "member"


class MemberChange(Schema):
    """His new role."""

    role: RoleName


class Invited(Schema):
    """The new member; a sign-in link only for somebody who has never signed in."""

    member: MemberOut
    sign_in_link: str | None


class TokenOut(Schema):
    """A token, without its secret."""

    id: int
    name: str
    kind: Literal["personal", "organization"]
    prefix: str
    scopes: list[str]
    role: str
    owner: str | None
    created_at: str
    expires_at: str | None
    last_used_at: str | None
    revoked_at: str | None


class TokenIn(Schema):
    """What to make."""

    name: str
    kind: Literal["personal", "organization"] = "personal"
    scopes: list[str] = Field(default_factory=lambda: ["read", "sandboxes"])
    role: RoleName = "member"
    expires_in_days: int | None = None


class TokenMade(Schema):
    """The token and its secret, which is shown this once."""

    token: TokenOut
    secret: str


PlaceName = Literal["path", "query", "body"]


class SecretOut(Schema):
    """A secret, without its value. `pending`: sandboxes that have not been told of a change yet."""

    id: str
    name: str
    sandbox: str | None
    hosts: list[str]
    places: list[PlaceName]
    labels: dict[str, str]
    version: int
    created_by: str
    created_at: str
    rotated_by: str | None
    rotated_at: str | None
    pushed_at: str | None
    pending: int


class SandboxSecretOut(SecretOut):
    """A secret that a sandbox has; `placeholder`: what its guest holds, empty until it has been started with it."""

    placeholder: str
    overridden: bool


class SecretIn(SandboxSecretIn):
    """A secret of the organization, for the sandboxes that have these labels; without labels for all."""

    labels: dict[str, str] = Field(default_factory=dict)


class SecretRotation(Schema):
    """Another value; hosts and places stay unless they are given with it."""

    value: SecretStr
    hosts: list[str] | None = None
    places: list[PlaceName] | None = None


class Person(Schema):
    """A signed-in person."""

    email: str
    name: str


class OrganizationOut(Schema):
    """An organization."""

    slug: str
    name: str


class MembershipOut(OrganizationOut):
    """An organization and one's role in it."""

    role: str


class Quota(Schema):
    """Sandboxes that may run at a time, and that do."""

    concurrent: int
    used: int


class SpendingOut(Schema):
    """Spending of the calendar month (UTC) against its cap; amounts as decimal text."""

    cap: str | None
    spent: str
    currency: str
    level: Literal["no_cap", "below", "near", "reached"]
    month: str
    month_ends: str


class SpendingCap(Schema):
    """What may be spent in a calendar month; null lifts the cap."""

    cap: Decimal | None


class CostOut(Schema):
    """What use costs, as decimal text with six places."""

    cpu: str
    memory: str
    volume: str
    total: str


class UseOut(Schema):
    """What was used: as it is counted, in the units of the price table, and its cost."""

    cpu_seconds: float
    memory_mib_seconds: float
    disk_byte_seconds: float
    cpu_hours: float
    memory_gb_hours: float
    volume_gib_months: float
    cost: CostOut


class UsePeriod(UseOut):
    """An hour or a day; `disk_gib` is the average over what of it is over."""

    at: str
    disk_gib: float


class UseSandbox(UseOut):
    """What one sandbox used, which may be deleted by now."""

    id: str
    name: str
    kind: Literal["sandbox", "workspace"]
    state: str


class PricesOut(Schema):
    """The price table: a GB is 10^9 bytes, a GiB 2^30, a month 730 hours."""

    cpu_hour: str
    memory_gb_hour: str
    volume_gib_month: str
    currency: str


class UseOthers(UseOut):
    """What the sandboxes used together that are not named because there are too many; all are in the CSV."""

    count: int


class UsageDays(Schema):
    """From which day to which, both included (UTC); by default this month so far."""

    first: date | None = Field(default=None, alias="from")
    last: date | None = Field(default=None, alias="to")


class UsageOut(Schema):
    """What the organization used from the first day to the last, both included (UTC)."""

    first_day: str
    last_day: str
    by: Literal["day", "hour", "sandbox"]
    begins: str | None
    totals: UseOut
    series: list[UsePeriod]
    sandboxes: list[UseSandbox]
    others: UseOthers
    volumes: UseOut
    prices: PricesOut
    spending: SpendingOut


class Me(Schema):
    """Who is asking, where, and what he may do."""

    user: Person | None
    organization: OrganizationOut
    role: str
    may: list[str]
    organizations: list[MembershipOut]
    quota: Quota
    spending: SpendingOut


class AuditOut(Schema):
    """One act."""

    actor: str
    action: str
    target: str
    detail: dict[str, Any]
    created_at: str


class Problem(Schema):
    """Every error."""

    code: str
    message: str


class DeviceLoginIn(Schema):
    """What the program calls the machine it runs on, for the person who is asked."""

    client_name: str = Field(max_length=200)


class DeviceLoginOut(Schema):
    """`secret` is the program's own; the person opens `url` and compares `user_code`. Times are seconds."""

    secret: str
    user_code: str
    url: str
    url_with_code: str
    expires_in: int
    interval: int


class DeviceSecret(Schema):
    """Which login."""

    secret: SecretStr


class DeviceAnswer(Schema):
    """Pending: ask again after `interval`."""

    state: Literal["pending", "granted", "denied", "expired"]
    token: str | None
    organization: str | None
