"""What a sandbox may reach is changed in its row and held by its machine, whoever is away meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sandboxes.database import in_thread
from sandboxes.errors import Conflict, Forbidden, Invalid, NotFound
from sandboxes.models import AuditEntry, Event, Organization, Sandbox, SandboxState, TimelineEntry
from sandboxes.reconcile import reconcile
from sandboxes.services import delivery, lifecycle, suspension
from sandboxes.services.egress import network_allow, network_deny, network_set, organization_network_set
from tests import factories
from tests.factories import Team
from vm.egress.policy import MAX_RULES, Policy
from vm.errors import NodeUnreachable
from vm.fake import FakeNode


async def booted(home: Team, **wanted: object) -> Sandbox:
    sandbox = await in_thread(factories.sandbox, home, **wanted)
    return await lifecycle.sandbox_boot(sandbox=sandbox)


def holds(node: FakeNode, sandbox: Sandbox) -> tuple[list[str] | None, list[str]]:
    policy = node.policy(sandbox.machine)
    return None if policy.allow_net is None else list(policy.allow_net), list(policy.deny)


async def test_a_change_is_written_told_and_heard_of(home: Team, node: FakeNode) -> None:
    """Row, machine, audit, timeline and event agree; the version counts."""
    sandbox = await booted(home)
    assert await network_set(
        sandbox=sandbox, actor=home.member, allow_net=["a.example:443", "a.example:443"], deny_net=["b.example"]
    )
    assert holds(node, sandbox) == (["a.example:443"], ["b.example"])
    await in_thread(sandbox.refresh_from_db)
    assert (sandbox.allow_net, sandbox.deny_net, sandbox.network_version) == (["a.example:443"], ["b.example"], 1)
    assert (await in_thread(AuditEntry.objects.get, action="sandbox.network")).detail["allow_net_before"] is None
    event = await in_thread(Event.objects.filter(kind="sandbox").latest, "id")
    assert event.payload["network_version"] == 1
    assert "may reach" in (await in_thread(TimelineEntry.objects.filter(sandbox=sandbox).latest, "id")).text


async def test_nobody_s_change_is_lost(home: Team, node: FakeNode) -> None:
    """A change that was begun before another one is refused; additions made at the same time are both there."""
    sandbox = await booted(home, allow_net=[])
    await network_set(sandbox=sandbox, actor=home.member, allow_net=["a.example"], deny_net=[], version=0)
    with pytest.raises(Conflict, match="somebody else"):
        await network_set(sandbox=sandbox, actor=home.member, allow_net=[], deny_net=[], version=0)
    names = [f"h{number}.example:443" for number in range(4)]
    copies = [await in_thread(Sandbox.objects.get, pk=sandbox.pk) for _name in names]
    await asyncio.gather(
        *(
            network_allow(sandbox=copy, actor=home.member, patterns=[name])
            for copy, name in zip(copies, names, strict=True)
        )
    )
    assert set(holds(node, sandbox)[0] or ()) == {"a.example", *names}


@pytest.mark.parametrize("call", ["machine_policy", "machine_start", "machine_fork"])
async def test_no_older_policy_is_the_last_word(
    home: Team, node: FakeNode, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """One that was read before a change, and told after it, does not stay: with secrets, at a start, and in a fork."""
    sandbox = await in_thread(factories.sandbox, home, allow_net=["a.example"], deny_net=[])
    if call != "machine_start":
        await lifecycle.sandbox_boot(sandbox=sandbox)
    inner, changed = getattr(node, call), False

    async def changing(*args: Any, **fields: Any) -> Any:
        nonlocal changed
        if not changed:
            changed = True
            await in_thread(Sandbox.objects.update, allow_net=[])
        return await inner(*args, **fields)

    monkeypatch.setattr(node, call, changing)
    if call == "machine_policy":
        await delivery.secrets_push(sandbox=sandbox)
    elif call == "machine_start":
        await lifecycle.sandbox_boot(sandbox=sandbox)
    else:
        sandbox = await suspension.sandbox_fork(sandbox=sandbox, actor=home.member)
    assert changed
    assert holds(node, sandbox) == ([], [])


async def test_what_cannot_be_added_says_why(home: Team, node: FakeNode) -> None:
    everything = await booted(home)
    with pytest.raises(Conflict, match="every public host"):
        await network_allow(sandbox=everything, actor=home.member, patterns=["a.example"])
    listed = await booted(home, allow_net=[])
    with pytest.raises(Invalid, match="URL"):
        await network_allow(sandbox=listed, actor=home.member, patterns=["https://a.example"])
    with pytest.raises(Invalid, match="deny_net"):
        await network_set(sandbox=listed, actor=home.member, allow_net=None, deny_net=["a b"])
    for patterns in ([], ["a.example"], ["a.example"]):
        await network_allow(sandbox=listed, actor=home.member, patterns=patterns)
    assert (listed.allow_net, listed.network_version) == (["a.example"], 1)


async def test_only_those_who_may(home: Team, other: Team, node: FakeNode) -> None:
    sandbox = await booted(home, allow_net=[])
    with pytest.raises(Forbidden):
        await network_allow(sandbox=sandbox, actor=home.viewer, patterns=["a.example"])
    with pytest.raises(NotFound):
        await network_set(sandbox=sandbox, actor=other.owner, allow_net=None, deny_net=[])
    with pytest.raises(Forbidden):
        await organization_network_set(actor=home.member, allow_net=None, deny_net=[])
    assert holds(node, sandbox) == ([], [])


async def test_a_node_that_was_away_is_told_by_the_reconciler(home: Team, node: FakeNode) -> None:
    """Running and suspended machines alike; and one whose node knows another policy for whatever reason."""
    running, resting = await booted(home, allow_net=[]), await booted(home, allow_net=[], kind="workspace")
    await suspension.sandbox_suspend(sandbox=resting, actor=home.member, beside=False)
    node.go_down(NodeUnreachable("away"))
    for sandbox in (running, resting):
        assert not await network_allow(sandbox=sandbox, actor=home.member, patterns=["a.example"])
    node.go_down(None)
    assert holds(node, running) == ([], [])
    await reconcile()
    assert holds(node, running) == holds(node, resting) == (["a.example"], [])
    # It agrees now, so it is not told again
    node.fail_next("machine_policy", NodeUnreachable("must not be asked"))
    await reconcile()
    assert len(node._failures["machine_policy"]) == 1


async def test_new_sandboxes_take_the_organization_s_defaults(home: Team, node: FakeNode) -> None:
    """Where nobody says what they may reach; a list that was given is kept, and so is an empty one."""
    await organization_network_set(actor=home.admin, allow_net=["a.example"], deny_net=["bad.example"])
    assert holds(node, await booted(home)) == (["a.example"], ["bad.example"])
    assert holds(node, await booted(home, allow_net=[])) == ([], ["bad.example"])
    given = await booted(home, allow_net=["b.example"], deny_net=["c.example"])
    assert holds(node, given) == (["b.example"], ["bad.example", "c.example"])
    fork = await suspension.sandbox_fork(sandbox=given, actor=home.member)
    assert holds(node, fork) == (["b.example"], ["bad.example", "c.example"])
    async with asyncio.timeout(20):  # whoever follows it must not meet the next test's database
        while fork.state != SandboxState.RUNNING:
            await asyncio.sleep(0.05)
            await in_thread(fork.refresh_from_db)
    await asyncio.sleep(0.1)


async def test_the_organization_s_deny_rules_hold_at_once(home: Team, other: Team, node: FakeNode) -> None:
    """For all that runs, and for nobody else's; what defaults allow changes nothing that exists."""
    mine, theirs = await booted(home), await in_thread(factories.sandbox, other)
    await lifecycle.sandbox_boot(sandbox=theirs)
    await organization_network_set(actor=home.owner, allow_net=[], deny_net=["bad.example"])
    assert holds(node, mine) == (None, ["bad.example"])
    assert holds(node, theirs) == (None, [])
    assert (await in_thread(Organization.objects.get, pk=home.organization.pk)).allow_net == []
    node.go_down(NodeUnreachable("away"))
    await organization_network_set(actor=home.owner, allow_net=[], deny_net=[])
    node.go_down(None)
    await reconcile()
    assert holds(node, mine) == (None, [])


@pytest.mark.parametrize("many", [1, MAX_RULES])
async def test_no_list_of_a_sandbox_keeps_the_organization_s_rules_out(home: Team, node: FakeNode, many: int) -> None:
    """Both lists may be full: the machine is told all the same, and each rule of the organization's denies."""
    sandbox = await booted(home, deny_net=[f"{'x' * 60}.{number}.example" for number in range(MAX_RULES)])
    rules = [f"{'y' * 60}.{number}.example:443" for number in range(many)]
    await organization_network_set(actor=home.owner, allow_net=None, deny_net=rules)
    denied = holds(node, sandbox)[1]
    assert len(denied) == MAX_RULES + many
    assert {Policy(None, denied).judge(rule.removesuffix(":443"), 443).rule for rule in rules} == set(rules)
    with pytest.raises(Invalid, match="1000 patterns"):
        await organization_network_set(actor=home.owner, allow_net=None, deny_net=[*rules, *sandbox.deny_net])


async def test_a_policy_changed_before_the_boot_is_the_one_it_boots_with(home: Team, node: FakeNode) -> None:
    sandbox = await in_thread(factories.sandbox, home)
    stale = await in_thread(Sandbox.objects.get, pk=sandbox.pk)
    assert await network_set(sandbox=sandbox, actor=home.member, allow_net=[], deny_net=[])
    await lifecycle.sandbox_boot(sandbox=stale)
    assert holds(node, stale) == ([], [])


async def test_somebody_may_want_to_be_asked(home: Team, node: FakeNode) -> None:
    """The machine is told so; either answer is one pattern more, and neither changes what else was said."""
    sandbox = await booted(home, allow_net=["a.example"])
    await network_set(sandbox=sandbox, actor=home.member, allow_net=["a.example"], deny_net=[], ask_net=True)
    assert node.policy(sandbox.machine).ask
    assert await network_allow(sandbox=sandbox, actor=home.member, patterns=["b.example:443"])
    assert await network_deny(sandbox=sandbox, actor=home.member, patterns=["c.example:443"])
    assert holds(node, sandbox) == (["a.example", "b.example:443"], ["c.example:443"])
    assert node.policy(sandbox.machine).ask
    with pytest.raises(Forbidden):
        await network_deny(sandbox=sandbox, actor=home.viewer, patterns=["d.example"])
