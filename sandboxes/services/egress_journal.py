"""Takes what sandboxes connected to from the node's journal into rows, and tells people of what was denied.

The position in the journal moves by one conditional UPDATE in the transaction that writes the rows: of several workers
one wins, and whoever dies in between has written nothing and the next one reads the same again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import structlog
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.db.models.functions import Mod
from django.utils import timezone

from sandboxes import audit, runtime
from sandboxes.config import config
from sandboxes.database import in_thread
from sandboxes.egress import ASKED, pattern_of, shown
from sandboxes.events import denial_payload
from sandboxes.models import EgressDenial, EgressPosition, EgressRecord, Sandbox, SandboxState
from sandboxes.services.retention import rows_drop
from vm.api import PassageBatch, PassageEntry
from vm.egress.journal import Kind, Verdict
from vm.errors import VmError

log = structlog.get_logger("atoll.egress")

NODE = "local"
"""The node whose journal is read; there is one."""
AT_A_TIME = 1000
ROUNDS = 20
"""Batches taken in one turn: what is left is for the next."""
QUIET = timedelta(minutes=10)
"""For which a denial is not told again, and after which it is too old to be told at all."""
MOST = 20
"""Denials of one sandbox that are told within that time (one more event says there are others); questions at a time."""
TOLD_FOR = timedelta(days=1)
RECENTLY = timedelta(minutes=5)
"""Some turns: one may be left out."""
IN_TURN = 60
"""Minutes in which each sandbox's rows are counted, whatever it does."""

type _Key = tuple[int, bool, str, int, str, str]


async def egress_collect() -> None:
    """Take what the node has. Repeatable, also beside itself; does nothing while the node does not answer."""
    for _ in range(ROUNDS):
        position = await in_thread(_position)
        try:
            batch = await runtime.node().egress_passages(position.cursor, AT_A_TIME)
        except VmError as error:
            log.warning("the node does not say what sandboxes connected to", error=str(error))
            return
        if not batch.entries or not await in_thread(_keep, position, batch):
            return


def _position() -> EgressPosition:
    return EgressPosition.objects.get_or_create(node=NODE)[0]


def _keep(position: EgressPosition, batch: PassageBatch) -> bool:
    """Write a batch down; False if somebody else has read on from that position."""
    if batch.dropped > position.dropped:
        log.warning("connections of sandboxes were not journalled", count=batch.dropped - position.dropped)
    with transaction.atomic():
        moved = EgressPosition.objects.filter(pk=position.pk, cursor=position.cursor).update(
            cursor=batch.cursor, dropped=batch.dropped
        )
        if not moved:
            return False
        machines = {entry.machine for entry in batch.entries}
        sandboxes = {row.machine: row for row in _named(machines).select_related("organization")}
        records = [_record(sandboxes[entry.machine], entry) for entry in batch.entries if entry.machine in sandboxes]
        over = [record for record in records if record.verdict != Verdict.ASKED]
        EgressRecord.objects.bulk_create(over, batch_size=500, ignore_conflicts=True)
        _tell({row.pk: row for row in sandboxes.values()}, records)
    return True


def _named(machines: Iterable[str]) -> QuerySet[Sandbox]:
    # What was deleted for good is nobody's any more
    return Sandbox.objects.filter(machine__in=machines).exclude(state=SandboxState.DELETED, machine_removed=True)


def _record(sandbox: Sandbox, entry: PassageEntry) -> EgressRecord:
    passage = entry.passage
    return EgressRecord(
        sandbox=sandbox,
        organization_id=sandbox.organization_id,
        number=entry.number,
        at=datetime.fromtimestamp(passage.began, UTC),
        minute=int(passage.began) // 60,
        kind=shown(passage.kind, 20),
        host=shown(passage.host, 255),
        port=passage.port,
        verdict=passage.verdict.value,
        rule=shown(passage.rule, 520),
        detail=shown(passage.detail, 520),
        sent=passage.sent,
        received=passage.received,
        seconds=passage.seconds,
        method=shown(passage.method, 20),
        path=shown(passage.path, 520),
        status=max(0, passage.status),
    )


def _tell(sandboxes: dict[int, Sandbox], records: Sequence[EgressRecord]) -> None:
    """Events for new denials and alerts, and for what waits for an answer: as many as a person may want to read."""
    now = timezone.now()
    since = now - QUIET
    found: dict[_Key, EgressRecord] = {}
    for record in records:
        if _is_told(sandboxes[record.sandbox_id], record, now):
            found.setdefault(_key(record), record)
    if not found:
        return
    told = EgressDenial.objects.filter(sandbox__in={record.sandbox_id for record in found.values()}, at__gt=since)
    # What waited in vain may be asked about again
    told = told.filter(Q(waits_until=None) | Q(waits_until__gt=now))
    before = list(told)
    known = {_key(row) for row in before}
    counts = Counter(_budget(row) for row in before)
    for key, record in found.items():
        alike = _budget(record)
        if key in known or counts[alike] > MOST:
            continue
        counts[alike] += 1
        sandbox = sandboxes[record.sandbox_id]
        if counts[alike] > MOST:
            if record.rule == ASKED:
                continue  # as many as this are questions enough
            denial = EgressDenial(
                sandbox=sandbox, kind=record.kind, at=record.at, host="", port=0, rule="", detail=_more(record)
            )
        else:
            denial = EgressDenial(
                sandbox=sandbox,
                kind=record.kind,
                at=record.at,
                host=record.host,
                port=record.port,
                rule=record.rule,
                detail=record.detail,
                waits_until=_waits_until(record) if record.verdict == Verdict.ASKED else None,
            )
        denial.save()
        audit.publish(organization_id=sandbox.organization_id, kind="denial", payload=denial_payload(sandbox, denial))


def _key(row: EgressRecord | EgressDenial) -> _Key:
    """Of what is told once in a while; each placeholder that goes astray is something of its own.

    A denied connection and the request in it, which was read to explain that, are one thing.
    """
    alert = row.kind == Kind.ALERT
    return row.sandbox_id, alert, row.host, row.port, row.rule, row.detail if alert else ""


def _budget(row: EgressRecord | EgressDenial) -> tuple[int, bool, bool]:
    """What is counted together: a guest could hide its alerts behind denials that it causes on purpose."""
    return row.sandbox_id, row.rule == ASKED, row.kind == Kind.ALERT


def _more(record: EgressRecord) -> str:
    what = "alerts were raised" if record.kind == Kind.ALERT else "hosts were denied"
    return f"more than {MOST} {what} in {QUIET.seconds // 60} minutes: its network page has them all"


def _is_told(sandbox: Sandbox, record: EgressRecord, now: datetime) -> bool:
    if record.verdict == Verdict.ASKED:
        return _waits_until(record) > now
    alert = record.kind == Kind.ALERT
    if not (alert or record.verdict == Verdict.DENIED) or record.at <= now - QUIET:
        return False
    # Somebody denied exactly this, and knows it
    return alert or not (record.rule in sandbox.deny_net and record.rule == pattern_of(record.host, record.port))


def _waits_until(record: EgressRecord) -> datetime:
    return record.at + timedelta(seconds=record.seconds)


def egress_prune(*, now: datetime | None = None) -> None:
    """Drop what is older than is kept, more than is kept of one sandbox, and what is of none any more."""
    now = now or timezone.now()
    days, rows = config()["egress_days"], config()["egress_rows"]
    rows_drop(EgressDenial.objects.filter(at__lt=now - TOLD_FOR).order_by("at"))
    rows_drop(EgressRecord.objects.filter(at__lt=now - timedelta(days=days)).order_by("at"))
    gone = Sandbox.objects.filter(state=SandboxState.DELETED, machine_removed=True)
    for sandbox in gone.filter(Exists(_of(OuterRef("pk")))).values_list("pk", flat=True):
        rows_drop(_of(sandbox))
    for sandbox in _grown(now):
        oldest = _of(sandbox).order_by("-number").values_list("number", flat=True)[rows - 1 : rows].first()
        if oldest is not None:
            rows_drop(_of(sandbox).filter(number__lt=oldest))


def _of(sandbox: int | OuterRef) -> QuerySet[EgressRecord]:
    return EgressRecord.objects.filter(sandbox=sandbox).order_by("number")


def _grown(now: datetime) -> set[int]:
    """Sandboxes that may have more rows than are kept: those that connect to something, and in turn all others.

    Whose connections were all long has no recent row, and the limit may have been lowered.
    """
    recent = EgressRecord.objects.filter(at__gt=now - RECENTLY).order_by().values_list("sandbox", flat=True).distinct()
    others = Sandbox.objects.annotate(turn=Mod("pk", IN_TURN)).filter(turn=now.minute % IN_TURN)
    return {*recent, *others.values_list("pk", flat=True)}
