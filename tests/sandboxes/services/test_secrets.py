"""Secrets: who gets which, what a machine is told and when, and that a value is nowhere but sealed."""

from __future__ import annotations

import secrets as random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from sandboxes import crypto, reconcile
from sandboxes.database import in_thread
from sandboxes.errors import Conflict, Forbidden, Invalid, NotFound, QuotaExceeded, SecretsLocked
from sandboxes.models import (
    AuditEntry,
    Event,
    Kind,
    Sandbox,
    SandboxState,
    Secret,
    SecretDelivery,
    SecretPlaceholder,
    StopCause,
    TimelineEntry,
)
from sandboxes.permissions import SYSTEM
from sandboxes.secret_rules import WantedSecret
from sandboxes.selectors.secrets import secret_list, secret_list_of
from sandboxes.services import changes, delivery, egress, lifecycle, streams, suspension
from sandboxes.services.secrets import (
    secret_create,
    secret_revoke,
    secret_rotate,
    secrets_given,
    secrets_prune,
    secrets_reseal,
)
from tests import factories
from tests.factories import Team
from tests.sandboxes.services.test_lifecycle import booted, in_parallel
from vm.errors import NodeUnreachable
from vm.fake import FakeNode

VALUE = "v4lue-that-is-nowhere"
PREFIX = "DENO_SECRET_PLACEHOLDER_"


def wanted(name: str = "API_KEY", value: str = VALUE, **more: Any) -> WantedSecret:
    return WantedSecret(**{"name": name, "value": value, "hosts": ["api.example.com"], **more})


async def create(team: Team, sandbox: Sandbox | None = None, **more: Any) -> Secret:
    """As a front door does it: the machines are told before it answers."""
    made = await in_thread(secret_create, wanted=wanted(**more), actor=team.member, sandbox=sandbox)
    await delivery.secrets_spread(organization_id=team.organization.pk)
    return made


def told(node: FakeNode, sandbox: Sandbox) -> dict[str, str]:
    """Names and values that the node holds for the sandbox."""
    return {secret.name: secret.value for secret in node.secrets(sandbox.machine)}


async def environment(sandbox: Sandbox) -> dict[str, str]:
    async with await streams.guest_call(sandbox=sandbox, method="envToObject", actor=SYSTEM) as call:
        found: dict[str, str] = await call.reply()
    return found


@pytest.fixture
def other_keys(settings: Any, tmp_path: Path) -> Callable[..., None]:
    """Writes these keys into a key file of the test's own."""
    place = tmp_path / "secrets.key"
    settings.ATOLL = {**settings.ATOLL, "secrets_key": place}

    def write(*keys: str) -> None:
        place.write_text("\n".join(keys))

    return write


async def test_a_sandbox_is_created_with_its_secrets(home: Team, node: FakeNode) -> None:
    """The node has the value, the guest a placeholder in its environment, where it goes before a variable."""
    sandbox = await booted(home, secrets=[wanted(places=["query"])], env={"API_KEY": "plain", "OTHER": "1"})
    [secret] = node.secrets(sandbox.machine)
    assert (secret.name, secret.value, list(secret.hosts), list(secret.places)) == (
        "API_KEY",
        VALUE,
        ["api.example.com"],
        ["query"],
    )
    assert secret.placeholder.startswith(PREFIX)
    assert len(secret.placeholder) >= len(PREFIX) + 32
    int(secret.placeholder.removeprefix(PREFIX), 16)
    found = await environment(sandbox)
    assert (found["API_KEY"], found["OTHER"]) == (secret.placeholder, "1")
    row = await in_thread(Secret.objects.get)
    assert row.pushed_at is not None


async def test_placeholders_differ_and_last(home: Team, node: FakeNode) -> None:
    """No two sandboxes or names share one; it outlives a restart, a suspend and another value."""
    first = await booted(home, kind=Kind.WORKSPACE, secrets=[wanted(), wanted("OTHER")])
    second = await booted(home, secrets=[wanted()])
    mine = {secret.name: secret.placeholder for secret in node.secrets(first.machine)}
    assert len({*mine.values(), node.secrets(second.machine)[0].placeholder}) == 3

    def same() -> bool:
        return {secret.name: secret.placeholder for secret in node.secrets(first.machine)} == mine

    await suspension.sandbox_suspend(sandbox=first, actor=home.member, beside=False)
    await suspension.sandbox_wake(sandbox=first, actor=home.member, beside=False)
    assert same()
    await lifecycle.sandbox_stop(sandbox=first, actor=home.member, beside=False)
    await in_thread(lifecycle.sandbox_start, sandbox=first, actor=home.member)
    await lifecycle.sandbox_boot(sandbox=first)
    assert same()
    row = await in_thread(Secret.objects.get, sandbox=first, name="OTHER")
    await in_thread(secret_rotate, secret_id=row.public_id, value="other value", actor=home.member)
    await delivery.secrets_spread(organization_id=home.organization.pk)
    assert same()
    assert told(node, first) == {"API_KEY": VALUE, "OTHER": "other value"}


async def test_a_running_sandbox_is_told_at_once(home: Team, node: FakeNode) -> None:
    """New, another value, revoked: node and guest hear of each, and a variable comes back from under a secret."""
    sandbox = await booted(home, env={"API_KEY": "plain"})
    made = await create(home, sandbox)
    assert told(node, sandbox) == {"API_KEY": VALUE}
    assert (await environment(sandbox))["API_KEY"].startswith(PREFIX)
    await in_thread(
        secret_rotate, secret_id=made.public_id, value="second value", actor=home.member, hosts=["b.example"]
    )
    await delivery.secrets_spread(organization_id=home.organization.pk)
    [secret] = node.secrets(sandbox.machine)
    assert (secret.value, list(secret.hosts)) == ("second value", ["b.example"])
    await create(home, sandbox, name="SECOND")
    await in_thread(secret_revoke, secret_id=made.public_id, actor=home.member)
    await delivery.secrets_spread(organization_id=home.organization.pk)
    assert told(node, sandbox) == {"SECOND": VALUE}
    found = await environment(sandbox)
    assert (found["API_KEY"], found["SECOND"][:24]) == ("plain", PREFIX)
    second = await in_thread(Secret.objects.get)
    await in_thread(secret_revoke, secret_id=second.public_id, actor=home.member)
    await delivery.secrets_spread(organization_id=home.organization.pk)
    assert "SECOND" not in await environment(sandbox)
    texts = await in_thread(lambda: [entry.text for entry in TimelineEntry.objects.filter(sandbox=sandbox)])
    assert "The secret API_KEY was revoked" in texts


async def test_the_organizations_secrets(home: Team, other: Team, node: FakeNode) -> None:
    """All its sandboxes have them, or those with the labels; a sandbox's own goes first; nobody else's have any."""
    plain = await booted(home)
    tagged = await booted(home, labels={"team": "sea", "x": "y"}, secrets=[wanted("SHARED", "own")])
    foreign = await booted(other, labels={"team": "sea"})
    await create(home, name="SHARED", value="shared")
    await create(home, name="SEA", value="salt", labels={"team": "sea"})
    assert told(node, plain) == {"SHARED": "shared"}
    assert told(node, tagged) == {"SHARED": "own", "SEA": "salt"}
    assert told(node, foreign) == {}
    later = await booted(home, labels={"team": "sea"})
    assert told(node, later) == {"SHARED": "shared", "SEA": "salt"}
    shown = await in_thread(secret_list_of, actor=home.member, sandbox=tagged)
    assert [(one.secret.name, one.secret.sandbox_id, one.overridden) for one in shown] == [
        ("SEA", None, False),
        ("SHARED", tagged.pk, False),
        ("SHARED", None, True),
    ]
    # Revoking its own one brings the organization's back, behind the same placeholder.
    before = {secret.name: secret.placeholder for secret in node.secrets(tagged.machine)}
    own = await in_thread(Secret.objects.get, sandbox=tagged)
    await in_thread(secret_revoke, secret_id=own.public_id, actor=home.member)
    await delivery.secrets_spread(organization_id=home.organization.pk)
    assert told(node, tagged) == {"SHARED": "shared", "SEA": "salt"}
    assert {secret.name: secret.placeholder for secret in node.secrets(tagged.machine)} == before


async def test_other_labels_are_other_secrets(home: Team, node: FakeNode) -> None:
    """Within a turn of the reconciler."""
    await create(home, labels={"team": "sea"})
    sandbox = await booted(home)
    await in_thread(changes.sandbox_change, sandbox=sandbox, actor=home.member, labels={"team": "sea"})
    await reconcile.reconcile()
    assert told(node, sandbox) == {"API_KEY": VALUE}
    await in_thread(changes.sandbox_change, sandbox=sandbox, actor=home.member, labels={})
    await reconcile.reconcile()
    assert told(node, sandbox) == {}


async def test_a_fork_has_secrets_of_its_own_behind_the_placeholders_it_holds(home: Team, node: FakeNode) -> None:
    """Its memory holds its source's placeholders; from then on each is rotated and revoked for itself."""
    source = await booted(home, kind=Kind.WORKSPACE, secrets=[wanted()])
    await create(home, name="SHARED", value="shared")
    fork = await suspension.sandbox_fork(sandbox=source, actor=home.member)
    assert told(node, fork) == told(node, source) == {"API_KEY": VALUE, "SHARED": "shared"}
    assert {one.placeholder for one in node.secrets(fork.machine)} == {
        one.placeholder for one in node.secrets(source.machine)
    }
    rows = await in_thread(lambda: {row.sandbox_id: row for row in Secret.objects.exclude(sandbox=None)})
    assert set(rows) == {source.pk, fork.pk}
    await in_thread(secret_rotate, secret_id=rows[fork.pk].public_id, value="fork's", actor=home.member)
    await in_thread(secret_revoke, secret_id=rows[source.pk].public_id, actor=home.member)
    await delivery.secrets_spread(organization_id=home.organization.pk)
    assert told(node, fork) == {"API_KEY": "fork's", "SHARED": "shared"}
    assert told(node, source) == {"SHARED": "shared"}


async def test_another_policy_keeps_them(home: Team, node: FakeNode) -> None:
    """A node is told policy and secrets together: neither change takes the other back."""
    sandbox = await booted(home, secrets=[wanted()])
    assert await egress.network_set(sandbox=sandbox, actor=home.member, allow_net=["a.example"], deny_net=[])
    assert told(node, sandbox) == {"API_KEY": VALUE}
    await create(home, sandbox, name="SECOND")
    assert told(node, sandbox) == {"API_KEY": VALUE, "SECOND": VALUE}
    assert list(node.policy(sandbox.machine).allow_net or ()) == ["a.example"]


async def test_a_node_that_was_away_is_told_later(home: Team, node: FakeNode) -> None:
    """The change is made all the same, the list says that it has not reached the machine, the reconciler tells it."""
    sandbox = await booted(home, secrets=[wanted()])
    row = await in_thread(Secret.objects.get)
    node.go_down(NodeUnreachable("away"))
    await in_thread(secret_revoke, secret_id=row.public_id, actor=home.member)
    await in_thread(secret_create, wanted=wanted("SECOND"), actor=home.member)
    await delivery.secrets_spread(organization_id=home.organization.pk)
    assert told(node, sandbox) == {"API_KEY": VALUE}
    [shown] = await in_thread(secret_list, actor=home.member)
    assert (shown.pending, shown.secret.pushed_at) == (1, None)
    node.go_down(None)
    await reconcile.reconcile()
    assert told(node, sandbox) == {"SECOND": VALUE}
    [shown] = await in_thread(secret_list, actor=home.member)
    assert shown.pending == 0
    assert shown.secret.pushed_at is not None


async def test_a_node_that_was_killed_is_told_again(home: Team, node: FakeNode) -> None:
    """Its values were in memory only: also for one that is suspended they come back without anybody."""
    running = await booted(home, secrets=[wanted()])
    asleep = await booted(home, kind=Kind.WORKSPACE, secrets=[wanted(value="of the other")])
    without = await booted(home)
    await suspension.sandbox_suspend(sandbox=asleep, actor=home.member, beside=False)
    node.forget_secrets()
    assert told(node, running) == {}
    await reconcile.reconcile()
    assert told(node, running) == {"API_KEY": VALUE}
    assert told(node, asleep) == {"API_KEY": "of the other"}
    assert [info.policy_wanted for info in await node.machine_list()] == [False] * 3
    assert node.policy(without.machine).allow_net is None
    # A resume right after the kill does not wait for the reconciler.
    node.forget_secrets()
    await suspension.sandbox_wake(sandbox=asleep, actor=home.member, beside=False)
    assert told(node, asleep) == {"API_KEY": "of the other"}


async def test_a_suspended_guest_hears_of_new_names_when_it_runs(home: Team, node: FakeNode) -> None:
    """Its node knows at once, its environment is in a memory that stands still."""
    workspace = await booted(home, kind=Kind.WORKSPACE)
    await suspension.sandbox_suspend(sandbox=workspace, actor=home.member, beside=False)
    await create(home, workspace)
    assert told(node, workspace) == {"API_KEY": VALUE}
    await suspension.sandbox_wake(sandbox=workspace, actor=home.member, beside=False)
    assert "API_KEY" not in await environment(workspace)
    await reconcile.reconcile()
    assert (await environment(workspace))["API_KEY"].startswith(PREFIX)
    row = await in_thread(SecretDelivery.objects.get)
    assert (row.env_behind, row.names, row.delivered) == (False, ["API_KEY"], row.wanted)


async def test_a_change_while_a_machine_is_made_is_told_after_it(home: Team, node: FakeNode) -> None:
    """What a boot has read is not the last word."""
    sandbox = await in_thread(factories.sandbox, home, secrets=[wanted()])
    _spec, bundle = await in_thread(lifecycle.machine_wanted, sandbox)
    row = await in_thread(Secret.objects.get)
    await in_thread(secret_rotate, secret_id=row.public_id, value="newer", actor=home.member)
    assert await in_thread(secrets_given, sandbox=sandbox, bundle=bundle, env=True)
    await lifecycle.sandbox_boot(sandbox=sandbox)
    assert told(node, sandbox) == {"API_KEY": "newer"}


def test_who_may(home: Team, other: Team) -> None:
    """Members manage and see names; viewers neither; for another organization it does not exist."""
    sandbox = factories.sandbox(home)
    own = secret_create(wanted=wanted(), actor=home.member, sandbox=sandbox)
    shared = secret_create(wanted=wanted("SHARED"), actor=home.member)
    for row in (own, shared):
        with pytest.raises(Forbidden):
            secret_rotate(secret_id=row.public_id, value="x", actor=home.viewer)
        with pytest.raises(NotFound):
            secret_rotate(secret_id=row.public_id, value="x", actor=other.owner)
        with pytest.raises(NotFound):
            secret_revoke(secret_id=row.public_id, actor=other.owner)
    with pytest.raises(NotFound):
        secret_create(wanted=wanted(), actor=other.owner, sandbox=sandbox)
    with pytest.raises(NotFound):
        secret_list_of(actor=other.owner, sandbox=sandbox)
    for actor in (home.viewer,):
        with pytest.raises(Forbidden):
            secret_create(wanted=wanted("MORE"), actor=actor)
        with pytest.raises(Forbidden):
            secret_list(actor=actor)
    assert secret_list(actor=other.member) == []
    assert [shown.secret.name for shown in secret_list(actor=home.member)] == ["SHARED"]
    assert Secret.objects.count() == 2


def test_a_token_needs_the_scope(home: Team) -> None:
    """A sandbox's own with `sandboxes`, the organization's with `organization`."""
    from dataclasses import replace

    sandbox = factories.sandbox(home)
    worker = replace(home.owner, scopes=frozenset({"sandboxes"}))
    secret_create(wanted=wanted(), actor=worker, sandbox=sandbox)
    with pytest.raises(Forbidden):
        secret_create(wanted=wanted(), actor=worker)
    secret_create(wanted=wanted(), actor=replace(home.owner, scopes=frozenset({"organization"})))


def test_names_are_there_once_and_bounded(home: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = factories.sandbox(home)
    secret_create(wanted=wanted(), actor=home.member, sandbox=sandbox)
    secret_create(wanted=wanted(), actor=home.member)
    for place in (sandbox, None):
        with pytest.raises(Conflict, match="already: rotate it"):
            secret_create(wanted=wanted(), actor=home.member, sandbox=place)
    monkeypatch.setattr("sandboxes.secret_rules.OF_SANDBOX", 2)
    secret_create(wanted=wanted("B"), actor=home.member, sandbox=sandbox)
    with pytest.raises(QuotaExceeded):
        secret_create(wanted=wanted("C"), actor=home.member, sandbox=sandbox)
    with pytest.raises(QuotaExceeded):
        factories.sandbox(home, secrets=[wanted("A"), wanted("B"), wanted("C")])
    assert Sandbox.objects.count() == 1


async def test_as_much_as_is_allowed_is_taken_by_a_node(home: Team, node: FakeNode) -> None:
    """An organization's and a sandbox's own together; one byte more of either is refused, also by another value."""
    half = 64 * 1024
    for name in ("A", "B"):
        await in_thread(secret_create, wanted=wanted(name, "ü" * (half // 2)), actor=home.member)
    sandbox = await booted(home, secrets=[wanted("C", "c" * half), wanted("D", "d" * (half - 1)), wanted("E", "e")])
    assert sandbox.state == SandboxState.RUNNING
    assert len(told(node, sandbox)) == 5
    with pytest.raises(QuotaExceeded, match="131073 bytes together"):
        await in_thread(secret_create, wanted=wanted("F", "f"), actor=home.member)
    row = await in_thread(Secret.objects.get, name="E")
    with pytest.raises(QuotaExceeded, match="131073 bytes together"):
        await in_thread(secret_rotate, secret_id=row.public_id, value="ee", actor=home.member)
    await in_thread(secret_rotate, secret_id=row.public_id, value="f", actor=home.member)


def test_of_two_at_a_time_one_wins(home: Team) -> None:
    """On every database."""
    results = in_parallel(lambda: secret_create(wanted=wanted(), actor=home.member), 4)
    assert sum(isinstance(result, Secret) for result in results) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 3


def test_a_wrong_secret_makes_no_sandbox(home: Team) -> None:
    with pytest.raises(Invalid, match="at least one is needed"):
        factories.sandbox(home, secrets=[wanted(hosts=[])])
    assert not Sandbox.objects.exists()


def test_hosts_change_with_the_value_only(home: Team) -> None:
    """Nobody can bind a value he does not know to a host of his: there is no service that would."""
    row = secret_create(wanted=wanted(places=["body"]), actor=home.member)
    rotated = secret_rotate(secret_id=row.public_id, value="two\nlines", actor=home.admin)
    assert (rotated.hosts, rotated.places, rotated.version, rotated.rotated_by) == (
        ["api.example.com"],
        ["body"],
        2,
        "admin@home.example",
    )
    with pytest.raises(Invalid, match="line break"):
        secret_rotate(secret_id=row.public_id, value="two\nlines", actor=home.admin, places=[])
    with pytest.raises(Invalid, match="at least one"):
        secret_rotate(secret_id=row.public_id, value="x", actor=home.admin, hosts=[])
    row.refresh_from_db()
    assert (row.version, row.places) == (2, ["body"])


async def test_what_ends_takes_its_secrets_along(home: Team, node: FakeNode) -> None:
    """A sandbox when it stops; a workspace keeps them with its disk."""
    sandbox = await booted(home, secrets=[wanted()])
    workspace = await booted(home, kind=Kind.WORKSPACE, secrets=[wanted()])
    for one in (sandbox, workspace):
        await lifecycle.sandbox_stop(sandbox=one, actor=home.member, beside=False)
    assert await in_thread(lambda: [row.sandbox_id for row in Secret.objects.all()]) == [workspace.pk]
    assert await in_thread(SecretPlaceholder.objects.count) == 1
    with pytest.raises(Conflict, match="nothing in it can use a secret"):
        await in_thread(secret_create, wanted=wanted(), actor=home.member, sandbox=sandbox)
    await in_thread(Sandbox.objects.filter(pk=workspace.pk).update, machine_removed=True)
    await in_thread(secrets_prune)
    assert await in_thread(Secret.objects.count) == 0


async def test_without_its_key_nothing_starts_without_a_reason(
    home: Team, node: FakeNode, other_keys: Callable[..., None]
) -> None:
    """The row says which secret, and what to do; what needs no secret starts."""
    other_keys(first := random.token_urlsafe(48))
    workspace = await in_thread(factories.sandbox, home, kind=Kind.WORKSPACE, secrets=[wanted()])
    other_keys(random.token_urlsafe(48))
    await lifecycle.sandbox_boot(sandbox=workspace)
    assert (workspace.state, workspace.stop_cause) == (SandboxState.STOPPED, StopCause.BOOT_FAILED)
    assert "the secret API_KEY is sealed with the key" in workspace.stop_detail
    assert "put that key back" in workspace.stop_detail
    assert (await booted(home)).state == SandboxState.RUNNING
    other_keys(first)
    await in_thread(lifecycle.sandbox_start, sandbox=workspace, actor=home.member)
    assert (await lifecycle.sandbox_boot(sandbox=workspace)).state == SandboxState.RUNNING


async def test_a_fork_without_the_key_leaves_nothing(
    home: Team, node: FakeNode, other_keys: Callable[..., None]
) -> None:
    other_keys(random.token_urlsafe(48))
    source = await booted(home, secrets=[wanted()])
    other_keys(random.token_urlsafe(48))
    with pytest.raises(SecretsLocked):
        await suspension.sandbox_fork(sandbox=source, actor=home.member)
    assert await in_thread(Sandbox.objects.count) == 1
    assert len(await node.machine_list()) == 1


def test_another_key(home: Team, other: Team, other_keys: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row is sealed with the new key in batches; an interrupted turn goes on; the old key is not needed then."""
    monkeypatch.setattr("sandboxes.services.secrets.BATCH", 2)
    old, new = random.token_urlsafe(48), random.token_urlsafe(48)
    other_keys(old)
    for number in range(5):
        secret_create(wanted=wanted(f"S{number}", f"value {number}"), actor=home.member)
    secret_create(wanted=wanted(), actor=other.member)
    other_keys(new, old)
    seal, calls = crypto.Keyring.seal, 0

    def dies(self: crypto.Keyring, value: str, *, bound_to: str) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return seal(self, value, bound_to=bound_to)

    monkeypatch.setattr(crypto.Keyring, "seal", dies)
    with pytest.raises(KeyboardInterrupt):
        secrets_reseal()
    monkeypatch.setattr(crypto.Keyring, "seal", seal)
    current = crypto.keyring().current
    assert Secret.objects.filter(key=current).count() == 2
    # Sealed meanwhile, with the new key: not touched again.
    secret_create(wanted=wanted("LATER"), actor=home.member)
    assert secrets_reseal() == 4
    assert secrets_reseal() == 0
    assert set(Secret.objects.values_list("key", flat=True)) == {current}
    other_keys(new)
    sandbox = factories.sandbox(home)
    _spec, bundle = lifecycle.machine_wanted(sandbox)
    assert {secret.name: secret.value for secret in bundle.secrets} == {
        **{f"S{number}": f"value {number}" for number in range(5)},
        "LATER": VALUE,
    }


def test_one_that_cannot_be_opened_holds_up_no_other(home: Team, other_keys: Callable[..., None]) -> None:
    """It is named, so that somebody does something about it before the old key goes."""
    lost, old, new = (random.token_urlsafe(48) for _ in range(3))
    other_keys(lost)
    secret_create(wanted=wanted("LOST"), actor=home.member)
    other_keys(old)
    secret_create(wanted=wanted("KEPT"), actor=home.member)
    other_keys(new, old)
    with pytest.raises(SecretsLocked, match="LOST"):
        secrets_reseal()
    assert Secret.objects.get(name="KEPT").key == crypto.keyring().current


def test_a_row_put_in_place_of_another_does_not_open(home: Team, other: Team) -> None:
    """Whoever can write the database, and has no key, cannot move a value to an organization of his."""
    mine = secret_create(wanted=wanted(), actor=home.member)
    theirs = secret_create(wanted=wanted(value="x"), actor=other.member)
    Secret.objects.filter(pk=theirs.pk).update(sealed=bytes(Secret.objects.get(pk=mine.pk).sealed))
    with pytest.raises(SecretsLocked, match="damaged or another's"):
        lifecycle.machine_wanted(factories.sandbox(other))


async def test_the_value_is_nowhere(home: Team, node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
    """Not in any row of any table, nor in the guest, nor in what was logged or shown; it is where it ought to be."""
    sandbox = await booted(home, secrets=[wanted()])
    made = await create(home, name="SHARED", value=f"{VALUE}-too")
    await in_thread(secret_rotate, secret_id=made.public_id, value=f"{VALUE}-again", actor=home.member)
    node.go_down(NodeUnreachable("away"))
    await delivery.secrets_spread(organization_id=home.organization.pk)
    node.go_down(None)
    await reconcile.reconcile()
    with pytest.raises(Conflict) as refused:
        await create(home, name="SHARED", value=f"{VALUE}-too")
    assert told(node, sandbox) == {"API_KEY": VALUE, "SHARED": f"{VALUE}-again"}
    fork = await suspension.sandbox_fork(sandbox=sandbox, actor=home.member)

    def dump() -> str:
        found = []
        with connection.cursor() as cursor:
            for table in connection.introspection.table_names(cursor):
                cursor.execute(f'SELECT * FROM "{table}"')  # noqa: S608
                found += [bytes(c) if isinstance(c, memoryview) else c for row in cursor.fetchall() for c in row]
        return " ".join(map(str, found))

    rows = await in_thread(dump)
    assert "api.example.com" in rows
    everything = [
        rows,
        caplog.text,
        str(await environment(sandbox)),
        str(await environment(fork)),
        refused.value.message,
        repr(node.secrets(sandbox.machine)),
        repr(await in_thread(lifecycle.machine_wanted, sandbox)),
    ]
    assert "yet to be told" in caplog.text
    assert not [text for text in everything if VALUE in text]
    assert await in_thread(AuditEntry.objects.filter(action="secret.rotate").count) == 1
    assert await in_thread(Event.objects.filter(kind="secret").exists)
    assert timezone.now() >= (await in_thread(Secret.objects.get, sandbox=sandbox)).created_at
