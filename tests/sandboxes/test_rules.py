"""Permissions, quotas, states and ids: the pure rules."""

from __future__ import annotations

import re

import pytest

from sandboxes import ids, permissions, quotas, states
from sandboxes.errors import Forbidden, Invalid, NotFound, QuotaExceeded
from sandboxes.models import Role, SandboxState, StopCause
from sandboxes.permissions import SYSTEM, Actor
from sandboxes.quotas import Amount, Limits
from sandboxes.states import Move
from vm.api import StopReason


def someone(role: Role, scopes: frozenset[str] | None = None) -> Actor:
    return Actor(organization_id=1, role=role, label="x", scopes=scopes)


@pytest.mark.parametrize(
    ("role", "action", "allowed"),
    [
        (Role.VIEWER, "sandbox.view", True),
        (Role.VIEWER, "sandbox.use", False),
        (Role.VIEWER, "sandbox.create", False),
        (Role.MEMBER, "sandbox.create", True),
        (Role.MEMBER, "sandbox.delete", True),
        (Role.MEMBER, "member.invite", False),
        (Role.ADMIN, "member.invite", True),
        (Role.ADMIN, "member.change_owner", False),
        (Role.OWNER, "member.change_owner", True),
    ],
)
def test_roles(role: Role, action: str, allowed: bool) -> None:
    """Each role may do what its rank says, and nothing above."""
    assert permissions.allows(someone(role), action, 1) is allowed


def test_another_organization_does_not_exist() -> None:
    """Across organizations even an owner gets NotFound, not Forbidden."""
    with pytest.raises(NotFound):
        permissions.require(someone(Role.OWNER), "sandbox.view", 2)


def test_scopes_narrow_a_token() -> None:
    """A token may do what both its role and its scopes allow; reading is part of every scope."""
    reader = someone(Role.OWNER, frozenset({"read"}))
    worker = someone(Role.OWNER, frozenset({"sandboxes"}))
    permissions.require(reader, "sandbox.view", 1)
    permissions.require(worker, "sandbox.view", 1)
    permissions.require(worker, "sandbox.create", 1)
    for actor, action in (
        (reader, "sandbox.create"),
        (worker, "member.invite"),
        (someone(Role.OWNER, frozenset()), "sandbox.view"),
    ):
        with pytest.raises(Forbidden):
            permissions.require(actor, action, 1)


def test_every_action_is_the_systems_too() -> None:
    """Atoll itself is not stopped by rules for people."""
    assert all(permissions.allows(SYSTEM, action, 7) for action in permissions.RULES)


def test_ids_have_the_form_the_sdk_checks() -> None:
    """The JavaScript SDK refuses any other id before it asks the server."""
    pattern = re.compile(r"^sbx_[a-z]{3}_[0-9a-hjkmnp-z]{20}$")
    made = {ids.sandbox_id("loc") for _ in range(200)}
    assert len(made) == 200
    assert all(pattern.match(one) for one in made)


def test_stopped_is_final_for_a_sandbox() -> None:
    """Only a stopped one is started or deleted, and a deleted one is restored or nothing."""
    assert states.sources(Move.START) == states.sources(Move.DELETE) == {SandboxState.STOPPED}
    assert [m for m, (sources, _target) in states.MOVES.items() if SandboxState.DELETED in sources] == [Move.RESTORE]


@pytest.mark.parametrize("memory", [767, 4097, 0, -1, 10**12])
def test_memory_out_of_range(memory: int) -> None:
    """The message names the value and the bounds."""
    with pytest.raises(Invalid, match=f"{memory}.*768 to 4096"):
        quotas.check_memory(memory)


@pytest.mark.parametrize(
    "labels",
    [{str(n): "" for n in range(6)}, {"k" * 65: ""}, {"k": "v" * 129}, {"": "v"}, {"ü" * 33: ""}],
)
def test_labels_out_of_bounds(labels: dict[str, str]) -> None:
    """Bounds count bytes, not characters."""
    with pytest.raises(Invalid):
        quotas.check_labels(labels)


def test_labels_at_their_bounds() -> None:
    """Exactly at the bound is fine."""
    quotas.check_labels({"k" * 64: "v" * 128, "a": "", "b": "", "c": "", "d": ""})


@pytest.mark.parametrize(
    "env", [{"A=B": ""}, {"": "x"}, {"A": "\0"}, {"A": "x" * 300_000}, {str(n): "" for n in range(257)}]
)
def test_env_out_of_bounds(env: dict[str, str]) -> None:
    """What no process could be given is refused before a machine is made."""
    with pytest.raises(Invalid):
        quotas.check_env(env)


def test_room() -> None:
    """The last place may be taken, one more not."""
    one = Amount(sandboxes=1)
    quotas.check_room(used=Amount(sandboxes=4), asked=one, limits=Limits(concurrent=5))
    with pytest.raises(QuotaExceeded):
        quotas.check_room(used=Amount(sandboxes=5), asked=one, limits=Limits(concurrent=5))


@pytest.mark.parametrize("reason", StopReason)
def test_every_reason_of_a_node_is_a_cause(reason: StopReason) -> None:
    """A machine that stopped for a reason of which rows know nothing could not be settled at all."""
    assert StopCause(reason.value).label
