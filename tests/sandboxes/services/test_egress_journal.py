"""What sandboxes connected to comes into rows once, is told where it was denied, kept for a while, and read fast."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from sandboxes.database import in_thread
from sandboxes.models import (
    EgressDenial,
    EgressPosition,
    EgressRecord,
    Event,
    Kind,
    Sandbox,
    SandboxState,
)
from sandboxes.selectors import egress as selectors
from sandboxes.selectors.egress import Window
from sandboxes.services import egress_journal, retention
from sandboxes.services.egress_journal import MOST, egress_collect, egress_prune
from tests import factories
from tests.factories import Team
from tests.vm.egress.test_spool import passage
from vm.egress.journal import Kind as PassageKind
from vm.egress.journal import Passage, Verdict
from vm.errors import NodeUnreachable
from vm.fake import FakeNode


def now(number: int = 0, **fields: Any) -> Passage:
    return passage(number, **{"began": time.time(), **fields})


@pytest.fixture
def sandbox(home: Team) -> Sandbox:
    return factories.row(home, state=SandboxState.RUNNING, allow_net=[])


async def count(**wanted: Any) -> int:
    return int(await in_thread(EgressRecord.objects.filter(**wanted).count))


async def denials() -> list[dict[str, Any]]:
    return [event.payload for event in await in_thread(list, Event.objects.filter(kind="denial").order_by("id"))]


async def test_passages_become_rows_once(sandbox: Sandbox, node: FakeNode) -> None:
    """In full, however often somebody collects; those of a machine that no row names are dropped."""
    node.passed(sandbox.machine, *(now(n, verdict=Verdict.ALLOWED, method="GET", path="/x") for n in range(2500)))
    node.passed("f" * 32, now())
    await egress_collect()
    await egress_collect()
    assert await count() == 2500
    row = await in_thread(EgressRecord.objects.get, number=7)
    assert (row.host, row.port, row.verdict, row.sent, row.received) == ("h6.example", 443, "allowed", 6, 2)
    assert (row.method, row.path, row.organization_id) == ("GET", "/x", sandbox.organization_id)


async def test_a_worker_that_dies_at_any_point_loses_and_doubles_nothing(sandbox: Sandbox, node: FakeNode) -> None:
    """Before the rows are written nothing is; with them the position moves; who comes late with a batch adds none."""
    node.passed(sandbox.machine, *(now(n) for n in range(30)))
    position = await in_thread(egress_journal._position)
    batch = await node.egress_passages(position.cursor, 20)
    # It died here: the next one asks again
    again = await in_thread(egress_journal._position)
    assert await in_thread(egress_journal._keep, again, await node.egress_passages(again.cursor, 20))
    assert not await in_thread(egress_journal._keep, position, batch)
    assert await count() == 20
    # An older database was put back: what is read again is there once
    await in_thread(EgressPosition.objects.update, cursor="")
    await egress_collect()
    assert await count() == 30


async def test_a_kill_within_the_transaction_leaves_nothing(
    sandbox: Sandbox, node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.passed(sandbox.machine, now(1))

    def dies(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(egress_journal, "_tell", dies)
        position = await in_thread(egress_journal._position)
        batch = await node.egress_passages("", 10)
        with pytest.raises(KeyboardInterrupt):
            await in_thread(egress_journal._keep, position, batch)
    assert await count() == 0
    await egress_collect()
    assert (await count(), len(await denials())) == (1, 1)


async def test_a_node_that_is_away_is_asked_later(sandbox: Sandbox, node: FakeNode) -> None:
    node.passed(sandbox.machine, now(1))
    node.go_down(NodeUnreachable("away"))
    await egress_collect()
    assert await count() == 0
    node.go_down(None)
    await egress_collect()
    assert await count() == 1


async def test_a_denial_is_told_once_in_a_while(sandbox: Sandbox, node: FakeNode) -> None:
    """With what would help; another host, port or rule is another; what is old or was not denied is not told.

    The request that was read to explain a denial over TLS is none of its own.
    """
    node.passed(sandbox.machine, now(1), now(1, kind=PassageKind.REQUEST))
    node.passed(sandbox.machine, *(now(1) for _ in range(50)), now(1, port=80), now(2, rule="always refused"))
    node.passed(sandbox.machine, now(3, verdict=Verdict.FAILED), now(4, began=time.time() - 3600))
    await egress_collect()
    node.passed(sandbox.machine, now(1), now(1))
    await egress_collect()
    told = await denials()
    assert [(one["host"], one["port"], one["remedy"]) for one in told] == [
        ("h1.example", 443, "allow"),
        ("h1.example", 80, "allow"),
        ("h2.example", 443, "administrator"),
    ]
    assert told[0]["pattern"] == "h1.example:443"
    assert len({one["id"] for one in told}) == 3
    await in_thread(EgressDenial.objects.update, at=timezone.now() - egress_journal.QUIET)
    node.passed(sandbox.machine, now(1))
    await egress_collect()
    assert len(await denials()) == 4


async def test_a_flood_of_denials_is_no_flood_of_events(sandbox: Sandbox, node: FakeNode) -> None:
    """Some are told, then that there are more, and then none: in one turn and over many."""
    for turn in range(5):
        node.passed(sandbox.machine, *(now(turn * 100 + n) for n in range(100)))
        await egress_collect()
    told = await denials()
    assert len(told) == MOST + 1
    assert (told[-1]["host"], told[-1]["remedy"]) == ("", "")
    assert "network page" in told[-1]["detail"]
    assert await count() == 500


async def test_denials_cannot_hide_an_alert(sandbox: Sandbox, node: FakeNode) -> None:
    """A guest that has itself denied more often than is told does not silence its alerts, nor does one the next."""
    node.passed(sandbox.machine, *(now(n) for n in range(MOST + 5)))
    await egress_collect()
    alert = {"kind": PassageKind.ALERT, "verdict": Verdict.ALLOWED, "host": "a.example", "rule": "secrets"}
    for name in ("ONE", "TWO", "ONE"):
        node.passed(sandbox.machine, now(1, **alert, detail=f"The placeholder of {name} was sent to a.example."))
        await egress_collect()
    assert [one["detail"].split()[3] for one in await denials() if one["kind"] == "alert"] == ["ONE", "TWO"]
    node.passed(sandbox.machine, *(now(1, **alert, detail=f"The placeholder of T{n} was sent.") for n in range(40)))
    await egress_collect()
    alerts = [one for one in await denials() if one["kind"] == "alert"]
    assert len(alerts) == MOST + 1
    assert "alerts" in alerts[-1]["detail"]


async def test_what_a_guest_wrote_can_be_kept_and_shown(sandbox: Sandbox, node: FakeNode) -> None:
    """Control characters, halves of characters and endless texts stop nobody's journal."""
    node.passed(sandbox.machine, now(1, host="a\0b\ud800", path="\x1b[31m" + "x" * 9000, detail="\0" * 600, status=-5))
    await egress_collect()
    row = await in_thread(EgressRecord.objects.get)
    assert (row.host, row.status, len(row.path)) == ("a\ufffdb\ufffd", 0, 520)


async def test_retention(home: Team, node: FakeNode, settings: Any) -> None:
    """Days, rows of one sandbox, and the sandbox itself bound what is kept; the newest stays."""
    kept = await in_thread(factories.row, home)
    gone = await in_thread(factories.row, home, kind=Kind.WORKSPACE)
    node.passed(kept.machine, *(now(n) for n in range(20)), now(99, began=time.time() - 15 * 86_400))
    node.passed(gone.machine, *(now(n) for n in range(5)))
    await egress_collect()
    settings.ATOLL = {**settings.ATOLL, "egress_rows": 12, "egress_days": 14}
    await in_thread(egress_prune)
    assert (await count(sandbox=kept), await count(sandbox=gone)) == (12, 5)
    assert await count(sandbox=kept, host="h19.example") == 1
    assert await count(host__in=("h0.example", "h99.example"), sandbox=kept) == 0
    await in_thread(Sandbox.objects.filter(pk=gone.pk).update, state=SandboxState.DELETED)
    await in_thread(egress_prune)
    assert await count(sandbox=gone) == 5  # it can be restored yet
    await in_thread(Sandbox.objects.filter(pk=gone.pk).update, machine_removed=True)
    await in_thread(egress_prune)
    assert await count(sandbox=gone) == 0
    node.passed(gone.machine, now(1))
    await egress_collect()
    assert await count(sandbox=gone) == 0


async def test_one_turn_of_retention_has_an_end(home: Team, node: FakeNode, settings: Any, monkeypatch: Any) -> None:
    """Of what is too old, too much and nobody's the oldest go first, a few in each transaction; the rest waits."""
    monkeypatch.setattr(retention, "BATCH", 2)
    monkeypatch.setattr(retention, "MOST", 4)
    settings.ATOLL = {**settings.ATOLL, "egress_rows": 3, "egress_days": 14}
    old, full, gone = [await in_thread(factories.row, home) for _ in range(3)]
    node.passed(old.machine, *(now(n, began=time.time() - (30 - n) * 86_400) for n in range(6)))
    node.passed(full.machine, *(now(n) for n in range(9)))
    node.passed(gone.machine, *(now(n) for n in range(6)))
    await egress_collect()
    ours = EgressRecord.objects.filter(sandbox=full).order_by("number").values_list("host", flat=True)
    hosts = await in_thread(list, ours.all())
    fields = {"state": SandboxState.DELETED, "machine_removed": True}
    await in_thread(Sandbox.objects.filter(pk=gone.pk).update, **fields)
    await in_thread(egress_prune)
    assert [await count(sandbox=one) for one in (old, full, gone)] == [2, 5, 2]
    await in_thread(egress_prune)
    assert [await count(sandbox=one) for one in (old, full, gone)] == [0, 3, 0]
    assert await in_thread(list, ours.all()) == hosts[-3:]


async def test_who_connects_to_nothing_is_counted_within_the_hour(home: Team, node: FakeNode, settings: Any) -> None:
    """As where the limit was lowered: nobody reads the whole table for that every minute."""
    sandbox = await in_thread(factories.row, home)
    node.passed(sandbox.machine, *(now(n, began=time.time() - 86_400) for n in range(9)))
    await egress_collect()
    settings.ATOLL = {**settings.ATOLL, "egress_rows": 3}
    left = []
    for minute in range(60):
        await in_thread(partial(egress_prune, now=timezone.now().replace(minute=minute)))
        left.append(await count(sandbox=sandbox))
    assert sorted(set(left)) == [3, 9]
    assert left.index(3) == sandbox.pk % 60


def rows(sandbox: Sandbox, many: int) -> None:
    """Connections over the last day, one second apart or less."""
    ends = datetime.now(UTC)
    made = []
    for number in range(1, many + 1):
        at = ends - timedelta(seconds=(many - number) * 80_000 / many)
        made.append(
            EgressRecord(
                sandbox=sandbox,
                organization_id=sandbox.organization_id,
                number=number,
                at=at,
                minute=int(at.timestamp()) // 60,
                kind="connection",
                host=f"h{number % 40}.example",
                port=443,
                verdict="denied" if number % 40 == 0 else "allowed",
                rule="",
                detail="",
                sent=number,
                received=10,
                seconds=0.1,
            )
        )
    EgressRecord.objects.bulk_create(made, batch_size=2000)


def test_connections_are_found_and_filtered(home: Team, sandbox: Sandbox) -> None:
    rows(sandbox, 200)
    rows(factories.row(home), 10)
    listed = selectors.connections(actor=home.viewer, sandbox=sandbox, limit=3)
    assert [row.number for row in listed] == [200, 199, 198]
    older = selectors.connections(actor=home.viewer, sandbox=sandbox, before=198, limit=2)
    assert [row.number for row in older] == [197, 196]
    newer = selectors.connections(actor=home.viewer, sandbox=sandbox, after=198)
    assert [row.number for row in newer] == [200, 199]
    found = selectors.connections(actor=home.viewer, sandbox=sandbox, host="H39.", verdict="allowed")
    assert {row.host for row in found} == {"h39.example"}
    pieces = list(selectors.export(actor=home.viewer, sandbox=sandbox, verdict="denied"))
    assert [row.number for piece in pieces for row in piece] == [40, 80, 120, 160, 200]


def test_a_summary_adds_up(home: Team, sandbox: Sandbox) -> None:
    """The periods of every window cover it without a gap, and their sums are the whole's."""
    rows(sandbox, 400)
    for window, periods in ((Window.HOUR, 60), (Window.DAY, 48), (Window.WEEK, 84)):
        found = selectors.summary(actor=home.viewer, sandbox=sandbox, window=window)
        assert len(found.series) == periods
        assert sum(amounts.connections for _at, amounts in found.series) == found.total.connections
        assert sum(amounts.sent for _at, amounts in found.series) == found.total.sent
        step = timedelta(minutes=found.minutes)
        assert all(b - a == step for (a, _), (b, _) in zip(found.series, found.series[1:], strict=False))
    assert found.total.connections == 400
    assert found.total.denied == 10
    assert found.hosts[0].host == "h0.example"
    assert len(found.hosts) == selectors.TOP
    empty = selectors.summary(actor=home.viewer, sandbox=factories.row(home), window=Window.DAY)
    assert (empty.total.connections, empty.total.sent, empty.hosts) == (0, 0, [])


def test_a_list_is_proposed_from_what_was_reached_only(home: Team, sandbox: Sandbox) -> None:
    rows(sandbox, 200)
    patterns, left_out = selectors.allow_list_proposed(actor=home.viewer, sandbox=sandbox, days=1, fold=False)
    assert len(patterns) == 39
    assert left_out == 0
    assert "h0.example:443" not in patterns


def plan(queryset: Any) -> str:
    return str(queryset.explain())


def test_every_query_of_the_page_uses_an_index(home: Team, sandbox: Sandbox) -> None:
    """With 100,000 rows of one sandbox among others none is read from one end of the table to the other."""
    rows(sandbox, 100_000)
    for _ in range(3):
        rows(factories.row(home), 3000)
    told_of = [
        EgressDenial(sandbox=one, at=timezone.now(), host=f"h{n}", port=1, rule="", detail="")
        for one in Sandbox.objects.all()
        for n in range(500)
    ]
    EgressDenial.objects.bulk_create(told_of)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    latest = selectors._rows(sandbox, after=99_990).order_by("-number")[:100]
    newest = selectors._rows(sandbox).order_by("-number")[:100]
    hour = selectors._window(sandbox, int(time.time()) // 60 - 60)
    told = EgressDenial.objects.filter(sandbox=sandbox, at__gt=timezone.now()).order_by("-at")
    for queryset in (latest, newest, hour, told):
        said = plan(queryset)
        assert "index" in said.lower(), said
        assert "SCAN sandboxes_egress" not in said, said
        assert "Seq Scan on sandboxes_egressrecord" not in said, said
    old = plan(EgressRecord.objects.filter(at__lt=timezone.now() - timedelta(days=14)))
    assert "index" in old.lower(), old
    assert selectors.connections(actor=home.viewer, sandbox=sandbox, limit=1)[0].number == 100_000
    assert selectors.summary(actor=home.viewer, sandbox=sandbox, window=Window.WEEK).total.connections == 100_000


async def test_what_waits_for_an_answer_is_told_and_not_journalled(sandbox: Sandbox, node: FakeNode) -> None:
    """Once while it waits, and again when it waits again; what came too late is no question."""
    waits = {"verdict": Verdict.ASKED, "rule": "ask"}
    node.passed(sandbox.machine, now(1, seconds=60.0, **waits), now(1, seconds=60.0, **waits))
    node.passed(sandbox.machine, now(2, seconds=60.0, began=time.time() - 61, **waits))
    await egress_collect()
    node.passed(sandbox.machine, now(1, seconds=60.0, **waits))
    await egress_collect()
    (asked,) = await denials()
    assert (asked["host"], asked["remedy"], asked["waits_until"] is not None) == ("h1.example", "allow", True)
    assert await count() == 0
    row = await in_thread(Sandbox.objects.select_related("organization").get, pk=sandbox.pk)
    assert [one["host"] for one in await in_thread(selectors.denials_of, row)] == ["h1.example"]
    await in_thread(EgressDenial.objects.update, waits_until=timezone.now())
    assert await in_thread(selectors.denials_of, row) == []
    node.passed(sandbox.machine, now(1, seconds=60.0, **waits))
    await egress_collect()
    assert len(await denials()) == 2


async def test_a_flood_of_questions_is_none(sandbox: Sandbox, node: FakeNode) -> None:
    """So many at a time are asked; they leave the denials their own room."""
    for turn in range(3):
        many = (now(turn * 40 + n, verdict=Verdict.ASKED, rule="ask", seconds=60.0) for n in range(40))
        node.passed(sandbox.machine, *many, now(500 + turn))
        await egress_collect()
    told = await denials()
    assert [one["waits_until"] is not None for one in told].count(True) == MOST
    assert [one["host"] for one in told if one["waits_until"] is None] == [f"h{n}.example" for n in (500, 501, 502)]


async def test_what_somebody_denied_by_name_is_no_news(sandbox: Sandbox, node: FakeNode) -> None:
    await in_thread(Sandbox.objects.update, deny_net=["h1.example:443", "*.example"])
    node.passed(sandbox.machine, now(1, rule="h1.example:443"), now(2, rule="*.example"))
    await egress_collect()
    assert [(one["host"], one["remedy"]) for one in await denials()] == [("h2.example", "rule")]
    assert await count() == 2
