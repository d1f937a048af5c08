"""What a machine may be asked to be, whoever asks: ids, names, sizes, its policy."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vm.api import EgressPolicy, MachineSpec, Secret
from vm.egress.secrets import require_sane
from vm.errors import HypervisorError
from vm.node.doors import policy_of

_MACHINE = re.compile(r"[0-9a-f]{32}")
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_LIMITS = {"memory_mib": (128, 65_536), "vcpus": (1, 32), "disk_gib": (1, 1024)}


def require_sane_spec(spec: MachineSpec, secrets: Sequence[Secret]) -> None:
    """Nothing, or a HypervisorError that says what is wrong with it."""
    if not _MACHINE.fullmatch(spec.machine):
        raise HypervisorError("a machine's id is 32 lower-case hexadecimal digits")
    if not _HOSTNAME.fullmatch(spec.identity.hostname):
        raise HypervisorError("a host name is 1 to 63 letters, digits and hyphens")
    for name, (lowest, highest) in _LIMITS.items():
        if not lowest <= getattr(spec, name) <= highest:
            raise HypervisorError(f"{name} must be {lowest} to {highest}")
    require_sane_policy(spec.policy, secrets)


def require_sane_policy(policy: EgressPolicy, secrets: Sequence[Secret]) -> None:
    """Nothing, or a HypervisorError that says what is wrong with it."""
    try:
        policy_of(policy)
        require_sane(secrets)
    except ValueError as error:
        raise HypervisorError(f"the egress policy: {error}") from error
