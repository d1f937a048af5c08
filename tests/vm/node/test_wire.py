"""What two ends of the node's wire tell each other fits into its records."""

from __future__ import annotations

from dataclasses import asdict

from vm.api import EgressPolicy
from vm.egress.policy import _MAX_PATTERN, MAX_RULES
from vm.node.wire import MAX_RECORD, record


def test_the_longest_policy_fits_into_a_record() -> None:
    """Whatever a member writes into its lists: a policy that cannot be told would leave the one before in force."""
    longest = "\U00010400" * _MAX_PATTERN
    policy = EgressPolicy([longest] * MAX_RULES, [longest] * (2 * MAX_RULES))
    assert len(record({"policy": asdict(policy)})) < MAX_RECORD
