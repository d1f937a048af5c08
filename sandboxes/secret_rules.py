"""What a secret may be called, hold and be bound to. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from django.views.decorators.debug import sensitive_variables

from sandboxes import quotas
from sandboxes.errors import Invalid, QuotaExceeded
from vm.egress.policy import parse
from vm.egress.secrets import MAX_VALUE, PLACES

OF_ORGANIZATION, OF_SANDBOX = 100, 50
"""Secrets that an organization, and a sandbox, may have of its own."""
TOGETHER = 128 * 1024
"""Bytes that the values of either may have; a machine has those of both, and its node takes as much."""
HOSTS = 64
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


@dataclass(frozen=True, slots=True)
class WantedSecret:
    """What somebody wants a secret to be. `hosts` are patterns of names: `name` or `*.name`, each with `:port` or not.

    `labels` only of an organization's: those a sandbox must have to get it; empty: every sandbox.
    """

    name: str
    value: str = field(repr=False)
    hosts: Sequence[str]
    places: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


def check_secret(wanted: WantedSecret) -> None:
    """Invalid says what is wrong, and never what the value is."""
    if not _NAME.fullmatch(wanted.name):
        raise Invalid(
            f"{wanted.name[:40]!r} cannot be the name of a secret: it is an environment variable, of letters, digits "
            "and underscores, at most 128, not beginning with a digit",
            field="name",
        )
    check_hosts(wanted.name, wanted.hosts)
    check_places(wanted.name, wanted.places)
    check_value(wanted.name, wanted.value, wanted.places)
    quotas.check_labels(wanted.labels)


def check_hosts(name: str, hosts: Sequence[str]) -> None:
    """Invalid for none, too many, and what is no name of a host."""
    if not 1 <= len(hosts) <= HOSTS:
        raise Invalid(
            f"the secret {name} is bound to {len(hosts)} hosts: at least one is needed, at most {HOSTS} may be given",
            field="hosts",
        )
    for host in hosts:
        try:
            rule = parse(host)
        except ValueError as error:
            raise Invalid(f"hosts of the secret {name}: {error}", field="hosts") from error
        if not rule.name:
            raise Invalid(
                f"hosts of the secret {name}: {host[:100]!r} is an address; a host is verified by its name",
                field="hosts",
            )


def check_places(name: str, places: Sequence[str]) -> None:
    """Invalid for a place that there is not, or twice the same."""
    if not set(places) <= set(PLACES) or len(set(places)) != len(places):
        raise Invalid(f"places of the secret {name} are any of {', '.join(PLACES)}, each once", field="places")


@sensitive_variables("value")
def check_value(name: str, value: str, places: Sequence[str]) -> None:
    """Invalid for a value that could not be put where it is to be put."""
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise Invalid(f"the value of the secret {name} is not valid Unicode text", field="value") from None
    if not 1 <= size <= MAX_VALUE:
        raise Invalid(
            f"the value of the secret {name} has {size} bytes: it must have from 1 to {MAX_VALUE}", field="value"
        )
    if "\0" in value:
        raise Invalid(f"the value of the secret {name} has a NUL, which no request can carry", field="value")
    if "body" not in places and ("\r" in value or "\n" in value):
        raise Invalid(
            f"the value of the secret {name} has a line break, which no header can carry: "
            "remove it, or have the secret put into bodies",
            field="value",
        )


def check_room(*, count: int, size: int, of_sandbox: bool) -> None:
    """QuotaExceeded if that were too many secrets of an organization or a sandbox, or too many bytes of values."""
    limit = OF_SANDBOX if of_sandbox else OF_ORGANIZATION
    whose = "a sandbox" if of_sandbox else "an organization"
    if count > limit:
        raise QuotaExceeded(f"{whose} has at most {limit} secrets of its own: revoke one first", limit=limit)
    if size > TOGETHER:
        raise QuotaExceeded(
            f"the values of {whose}'s own secrets would have {size} bytes together, and may have {TOGETHER}: "
            "revoke one first",
            limit=TOGETHER,
        )
