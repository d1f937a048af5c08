"""Reads of secrets, within the actor's organization; none of them opens a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from django.db.models import F, Q, QuerySet

from sandboxes import permissions, states
from sandboxes.models import Sandbox, SandboxState, Secret, SecretDelivery, SecretPlaceholder
from sandboxes.permissions import Actor
from vm.api import MachineId

MACHINES = states.ALIVE
"""States in which a machine may hold secrets."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A secret as it may be seen. `pending` sandboxes have not been told of a change yet.

    Of one sandbox: what stands for it there, and whether it is `overridden` by one of its own with the same name.
    """

    secret: Secret
    pending: int
    placeholder: str = ""
    overridden: bool = False


def meant_for(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a sandbox with these labels gets a secret that wants those."""
    return all(labels.get(key) == value for key, value in wanted.items())


def effective(sandbox: Sandbox) -> list[Secret]:
    """The secrets of a sandbox by name: its own, and the organization's that are meant for it, which go behind them."""
    rows = _had_by(sandbox)
    found: dict[str, Secret] = {}
    # One of the sandbox's own is the later one, and stays
    for row in sorted(rows, key=lambda row: (row.sandbox_id is not None, row.name)):
        if row.sandbox_id is not None or meant_for(row.labels, sandbox.labels):
            found[row.name] = row
    return list(found.values())


def _had_by(sandbox: Sandbox) -> QuerySet[Secret]:
    """Its own, and all of its organization."""
    return Secret.objects.filter(Q(sandbox=None) | Q(sandbox=sandbox), organization_id=sandbox.organization_id)


def has_placeholder(sandbox: Sandbox, name: object) -> bool:
    """Whether a variable of that name in its guest is a secret's."""
    delivery = SecretDelivery.objects.filter(sandbox=sandbox).first()
    return delivery is not None and name in delivery.names


def behind(*, organization_id: int | None = None, machines: Sequence[MachineId] = ()) -> list[Sandbox]:
    """Sandboxes that are to be told of their secrets: a change has not reached them, or they are among `machines`.

    Of one organization, or of all.
    """
    # An environment is in a memory that runs: one that is saved is looked at when it runs again.
    awake = Q(state=SandboxState.RUNNING, unresponsive=False)
    late = Q(secret_delivery__wanted__gt=F("secret_delivery__delivered"))
    late |= Q(secret_delivery__env_behind=True) & awake
    rows = Sandbox.objects.filter(late | Q(machine__in=machines), state__in=MACHINES)
    return list(rows if organization_id is None else rows.filter(organization_id=organization_id))


def secret_list(*, actor: Actor) -> list[Shown]:
    """The organization's own, by name."""
    permissions.require(actor, "secret.view", actor.organization_id)
    late = _late(actor.organization_id)
    rows = Secret.objects.filter(organization_id=actor.organization_id, sandbox=None).order_by("name")
    return [Shown(row, sum(meant_for(row.labels, sandbox.labels) for sandbox in late)) for row in rows]


def secret_list_of(*, actor: Actor, sandbox: Sandbox) -> list[Shown]:
    """Those of a sandbox, its own and the organization's that it gets, by name."""
    permissions.require(actor, "secret.view", sandbox.organization_id)
    late = int(sandbox.pk in {row.pk for row in _late(sandbox.organization_id)})
    placeholders = dict(SecretPlaceholder.objects.filter(sandbox=sandbox).values_list("name", "placeholder"))
    rows = _had_by(sandbox).select_related("sandbox")
    there = [row for row in rows if row.sandbox_id is not None or meant_for(row.labels, sandbox.labels)]
    own = {row.name for row in there if row.sandbox_id is not None}
    shown = [
        Shown(
            row,
            late,
            placeholder=placeholders.get(row.name, ""),
            overridden=row.sandbox_id is None and row.name in own,
        )
        for row in there
    ]
    return sorted(shown, key=lambda one: (one.secret.name, one.overridden))


def _late(organization_id: int) -> list[Sandbox]:
    """Where a change is not in force yet; an environment that lacks a new name is not counted."""
    rows = SecretDelivery.objects.filter(
        wanted__gt=F("delivered"), sandbox__state__in=MACHINES, sandbox__organization_id=organization_id
    )
    return [row.sandbox for row in rows.select_related("sandbox")]
