"""Who may do what, as pure functions; the organization is the boundary, and beyond it things do not exist."""

from __future__ import annotations

from dataclasses import dataclass

from sandboxes.errors import Forbidden, NotFound
from sandboxes.models.organization import Role

RANK = {Role.VIEWER: 0, Role.MEMBER: 1, Role.ADMIN: 2, Role.OWNER: 3}

# Each action: the least role that may do it, and the scope a token needs for it.
RULES: dict[str, tuple[Role, str]] = {
    "organization.view": (Role.VIEWER, "read"),
    "organization.edit": (Role.ADMIN, "organization"),
    "organization.spending": (Role.OWNER, "organization"),
    "organization.network": (Role.ADMIN, "organization"),
    "usage.view": (Role.VIEWER, "read"),
    "member.list": (Role.VIEWER, "read"),
    "member.invite": (Role.ADMIN, "organization"),
    "member.change": (Role.ADMIN, "organization"),
    "member.change_owner": (Role.OWNER, "organization"),
    "token.create_personal": (Role.MEMBER, "organization"),
    "token.create_organization": (Role.ADMIN, "organization"),
    "token.revoke_any": (Role.ADMIN, "organization"),
    "audit.view": (Role.ADMIN, "read"),
    "sandbox.view": (Role.VIEWER, "read"),
    "sandbox.create": (Role.MEMBER, "sandboxes"),
    "sandbox.use": (Role.MEMBER, "sandboxes"),
    "sandbox.stop": (Role.MEMBER, "sandboxes"),
    "sandbox.start": (Role.MEMBER, "sandboxes"),
    "sandbox.suspend": (Role.MEMBER, "sandboxes"),
    "sandbox.resume": (Role.MEMBER, "sandboxes"),
    "sandbox.fork": (Role.MEMBER, "sandboxes"),
    "sandbox.extend": (Role.MEMBER, "sandboxes"),
    "sandbox.delete": (Role.MEMBER, "sandboxes"),
    "sandbox.restore": (Role.MEMBER, "sandboxes"),
    # Names, hosts and times; a value is shown to nobody.
    "secret.view": (Role.MEMBER, "read"),
    "secret.edit": (Role.MEMBER, "sandboxes"),
    "secret.edit_organization": (Role.MEMBER, "organization"),
    "volume.view": (Role.VIEWER, "read"),
    "volume.create": (Role.MEMBER, "sandboxes"),
    "volume.snapshot": (Role.MEMBER, "sandboxes"),
    "volume.delete": (Role.MEMBER, "sandboxes"),
    "volume.attach": (Role.MEMBER, "sandboxes"),
    "volume.restore": (Role.MEMBER, "sandboxes"),
    # Apps, their revisions and the layers they share; values of secret variables are shown to nobody.
    "app.view": (Role.VIEWER, "read"),
    "app.edit": (Role.MEMBER, "sandboxes"),
    "sandbox.network": (Role.MEMBER, "sandboxes"),
    # One's own, which act wherever one is a member: a token needs as much as for making further ones.
    "ssh_key.view": (Role.VIEWER, "read"),
    "ssh_key.edit": (Role.VIEWER, "organization"),
    "exposure.view": (Role.MEMBER, "read"),
    "exposure.edit": (Role.MEMBER, "sandboxes"),
}
SCOPES = ("read", "sandboxes", "organization")


@dataclass(frozen=True, slots=True)
class Actor:
    """Somebody who acts in one organization. `scopes` None: not limited (a signed-in person)."""

    organization_id: int
    role: Role
    label: str
    user_id: int | None = None
    token_id: int | None = None
    scopes: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class System:
    """Atoll itself: the reconciler, a deadline, an ended session. Allowed everything."""

    label: str = "atoll"


SYSTEM = System()
type AnyActor = Actor | System


def allows(actor: AnyActor, action: str, organization_id: int) -> bool:
    """Whether the actor may do it in that organization."""
    if isinstance(actor, System):
        return True
    role, scope = RULES[action]
    if actor.organization_id != organization_id or RANK[actor.role] < RANK[role]:
        return False
    # Reading is part of every wider scope.
    return actor.scopes is None or scope in actor.scopes or (scope == "read" and bool(actor.scopes))


def require(actor: AnyActor, action: str, organization_id: int) -> None:
    """Return if allowed. NotFound across organizations, so that nothing tells what exists there; else Forbidden."""
    if isinstance(actor, Actor) and actor.organization_id != organization_id:
        raise NotFound
    if not allows(actor, action, organization_id):
        raise Forbidden(action=action)
