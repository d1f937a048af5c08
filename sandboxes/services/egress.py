"""What a sandbox may reach: changed in its row first, then told to its machine.

Rows change in short transactions and the node is told outside of them. A node that does not hear of a change now is
told by the reconciler, which compares the digest of the policy that holds with that of the row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import structlog
from django.db import transaction
from django.db.models import F

from sandboxes import audit, events, permissions, runtime, states, timeline
from sandboxes.database import in_thread
from sandboxes.egress import check_patterns, policy_of
from sandboxes.errors import Conflict, Invalid, SecretsLocked
from sandboxes.models import Organization, Sandbox
from sandboxes.permissions import Actor
from sandboxes.services.secrets import Bundle, secrets_for_machine, secrets_given
from vm.api import EgressPolicy, policy_digest
from vm.egress.policy import MAX_RULES
from vm.errors import MachineGone, VmError

log = structlog.get_logger("atoll.egress")

AT_ONCE = 8
"""Machines that are told at a time of a change that is their organization's."""
ATTEMPTS = 10


def policy_now(*, sandbox: Sandbox) -> EgressPolicy:
    """What its machine may reach, by the rows as they are now."""
    return _policy(Sandbox.objects.select_related("organization").get(pk=sandbox.pk))


def policy_digest_of(row: Sandbox) -> str:
    """The digest of what its machine is to hold to; `row` with its organization."""
    return policy_digest(_policy(row))


def _policy(row: Sandbox) -> EgressPolicy:
    return policy_of(
        allow_net=row.allow_net,
        deny_net=row.deny_net,
        organization_deny=row.organization.deny_net,
        ask=row.ask_net,
    )


async def network_set(
    *,
    sandbox: Sandbox,
    actor: Actor,
    allow_net: Sequence[str] | None,
    deny_net: Sequence[str],
    ask_net: bool = False,
    version: int | None = None,
) -> bool:
    """Another policy for a sandbox; whether its machine holds to it already, or there is none.

    When this returns True, open connections that it forbids are closed. `version`: the one that was looked at; Conflict
    if somebody has changed it since. Invalid names a pattern that is none.
    """
    await in_thread(_change, sandbox, actor, _Lists(allow_net, deny_net, ask_net), version)
    return await network_push(sandbox=sandbox)


@dataclass(frozen=True, slots=True)
class _Lists:
    """What is written down of what a sandbox may reach."""

    allow_net: Sequence[str] | None
    deny_net: Sequence[str]
    ask_net: bool

    @classmethod
    def of(cls, sandbox: Sandbox) -> _Lists:
        return cls(sandbox.allow_net, sandbox.deny_net, sandbox.ask_net)

    def fields(self) -> dict[str, Any]:
        allow = None if self.allow_net is None else list(dict.fromkeys(self.allow_net))
        return {"allow_net": allow, "deny_net": list(dict.fromkeys(self.deny_net)), "ask_net": self.ask_net}


def _change(sandbox: Sandbox, actor: Actor, lists: _Lists, version: int | None) -> None:
    permissions.require(actor, "sandbox.network", sandbox.organization_id)
    check_patterns(lists.allow_net, field="allow_net")
    check_patterns(lists.deny_net, field="deny_net")
    if not _write(sandbox, actor, lists, version):
        raise Conflict("somebody else has changed what it may reach meanwhile: look at it again", state=sandbox.state)


async def network_allow(*, sandbox: Sandbox, actor: Actor, patterns: Sequence[str]) -> bool:
    """Let a sandbox reach these as well; whether its machine holds to it already, or there is none.

    What waits for that goes on. Repeatable. Invalid for a pattern that is none; Conflict where everything is allowed: a
    list would forbid the rest.
    """
    await in_thread(_add, sandbox, actor, patterns, "allow_net")
    return await network_push(sandbox=sandbox)


async def network_deny(*, sandbox: Sandbox, actor: Actor, patterns: Sequence[str]) -> bool:
    """Deny a sandbox these from now on, as `network_allow` allows them."""
    await in_thread(_add, sandbox, actor, patterns, "deny_net")
    return await network_push(sandbox=sandbox)


def _add(sandbox: Sandbox, actor: Actor, patterns: Sequence[str], to: Literal["allow_net", "deny_net"]) -> None:
    permissions.require(actor, "sandbox.network", sandbox.organization_id)
    check_patterns(patterns, field="patterns")
    for _ in range(ATTEMPTS):
        sandbox.refresh_from_db()
        before: list[str] | None = getattr(sandbox, to)
        if before is None:
            raise Conflict("it may reach every public host: a list would forbid all others", state=sandbox.state)
        wanted = list(dict.fromkeys([*before, *patterns]))
        if len(wanted) > MAX_RULES:
            raise Invalid(f"its list would have more than {MAX_RULES} patterns", field="patterns")
        lists = _Lists.of(sandbox)
        lists = replace(lists, allow_net=wanted) if to == "allow_net" else replace(lists, deny_net=wanted)
        if wanted == before or _write(sandbox, actor, lists, sandbox.network_version):
            return
    raise Conflict("others are changing what it may reach all the time: try again", state=sandbox.state)


def _write(sandbox: Sandbox, actor: Actor, lists: _Lists, version: int | None) -> bool:
    with transaction.atomic():
        rows = Sandbox.objects.filter(pk=sandbox.pk)
        if version is not None:
            rows = rows.filter(network_version=version)
        before = rows.values("allow_net", "deny_net", "ask_net").first()
        if before is None or not rows.update(**lists.fields(), network_version=F("network_version") + 1):
            return False
        sandbox.refresh_from_db()
        events.publish_sandbox(sandbox)
        audit.record(
            actor=actor,
            organization_id=sandbox.organization_id,
            action="sandbox.network",
            target=sandbox.public_id,
            **lists.fields(),
            **{f"{name}_before": value for name, value in before.items()},
        )
        timeline.record_happening(
            sandbox=sandbox, text=f"What it may reach was changed by {actor.label[:150]}", actor=actor.label[:150]
        )
    return True


async def network_push(*, sandbox: Sandbox) -> bool:
    """Have its machine hold to the policy of the rows. False if its node could not be told: the reconciler tells it."""
    try:
        return await machine_told(sandbox=sandbox)
    except (VmError, SecretsLocked) as error:
        log.warning("a machine could not be told its policy yet", sandbox=sandbox.public_id, error=str(error))
        return False


async def machine_told(*, sandbox: Sandbox, guest: Callable[[Sandbox, Bundle], Awaitable[bool]] | None = None) -> bool:
    """Tell its machine of policy and secrets until both are those of the rows; False if they change all the time.

    `guest` tells its guest of them, and answers whether it could. Repeatable. Any VmError of a node, SecretsLocked. A
    machine that is not there yet, or no more, is told when it is started.
    """
    policy = await in_thread(policy_now, sandbox=sandbox)
    for _ in range(ATTEMPTS):
        bundle = await in_thread(secrets_for_machine, sandbox=sandbox)
        try:
            # A node is told both together, and the secrets that it is not told are revoked.
            await runtime.node().machine_policy(sandbox.machine, policy, secrets=bundle.secrets)
        except MachineGone:
            return True
        env = guest is not None and await guest(sandbox, bundle)
        # Of two who tell it at a time the one with what is older may have come last
        told, policy = policy, await in_thread(policy_now, sandbox=sandbox)
        newer = await in_thread(secrets_given, sandbox=sandbox, bundle=bundle, env=env)
        if policy_digest(told) == policy_digest(policy) and not newer:
            return True
    return False


async def organization_network_set(
    *, actor: Actor, allow_net: Sequence[str] | None, deny_net: Sequence[str]
) -> Organization:
    """What the organization's new sandboxes may reach where nobody says, and what none of them ever may. Invalid.

    The deny rules hold for those that exist too, and have closed what they forbid when this returns, if they were told.
    """
    organization, running = await in_thread(_change_organization, actor, allow_net, deny_net)
    places = asyncio.Semaphore(AT_ONCE)

    async def push(sandbox: Sandbox) -> None:
        async with places:
            await network_push(sandbox=sandbox)

    await asyncio.gather(*(push(sandbox) for sandbox in running))
    return organization


def _change_organization(
    actor: Actor, allow_net: Sequence[str] | None, deny_net: Sequence[str]
) -> tuple[Organization, list[Sandbox]]:
    permissions.require(actor, "organization.network", actor.organization_id)
    check_patterns(allow_net, field="allow_net")
    check_patterns(deny_net, field="deny_net")
    with transaction.atomic():
        organization = Organization.objects.select_for_update(no_key=True).get(pk=actor.organization_id)
        before = organization.allow_net, organization.deny_net
        organization.allow_net = None if allow_net is None else list(dict.fromkeys(allow_net))
        organization.deny_net = list(dict.fromkeys(deny_net))
        organization.save(update_fields=["allow_net", "deny_net"])
        audit.record(
            actor=actor,
            organization_id=organization.pk,
            action="organization.network",
            target=organization.slug,
            allow_net=organization.allow_net,
            deny_net=organization.deny_net,
            allow_net_before=before[0],
            deny_net_before=before[1],
        )
    changed = before[1] != organization.deny_net
    rows = Sandbox.objects.filter(organization=organization, state__in=states.ALIVE) if changed else []
    return organization, list(rows)
