"""What sandboxes may reach, as far as it can be said without a machine. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from sandboxes.errors import Invalid
from sandboxes.models import Sandbox
from vm.api import EgressPolicy
from vm.egress.policy import parse_all


def check_allow_net(patterns: Sequence[str] | None) -> None:
    """Invalid names the pattern that is none, and what is wrong with it."""
    try:
        parse_all(patterns or ())
    except ValueError as error:
        raise Invalid(f"allow_net: {error}", field="allow_net") from error


def policy_of(sandbox: Sandbox) -> EgressPolicy:
    """What its machine is told of that."""
    return EgressPolicy(allow_net=sandbox.allow_net)
