"""Ways into a sandbox: who may make them, where they lead, and when they end."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from sandboxes.errors import Conflict, Forbidden, Invalid, NotFound, QuotaExceeded, Unavailable
from sandboxes.models import AuditEntry, Event, Exposure, ExposureKind, GatewayProcess, SandboxState
from sandboxes.permissions import SYSTEM
from sandboxes.selectors.exposures import exposure_find, exposures_open
from sandboxes.services import exposures
from sandboxes.services.exposures import Listening, exposure_bind, exposure_close, exposure_reserve, gateway_seen
from sandboxes.services.lifecycle import sandbox_move
from sandboxes.states import Move
from tests.factories import Team, row

PORTS = (8400, 8401, 8402)


@pytest.fixture
def gateway(quiet_database: None) -> uuid.UUID:
    process = uuid.uuid4()
    gateway_seen(process=process, listening=Listening(ports=PORTS, ssh_port=2222))
    return process


def test_reserved_bound_closed(home: Team, gateway: uuid.UUID) -> None:
    """It has a port of the gateway's alone, leads where it was bound to, and to nowhere once it is closed."""
    sandbox = row(home, state="running")
    made = exposure_reserve(sandbox=sandbox, actor=home.member)
    other = exposure_reserve(sandbox=sandbox, actor=home.member)

    assert {made.gateway_port, other.gateway_port} < set(PORTS)
    assert made.domain == f"127.0.0.1:{made.gateway_port}"
    assert made.gateway_port != other.gateway_port
    exposure_bind(sandbox=sandbox, actor=home.member, domain=made.domain, port=3000)
    found = exposure_find(kind=ExposureKind.HTTP, gateway_port=made.gateway_port)
    assert found is not None
    assert (found.pk, found.port, found.sandbox.machine) == (made.pk, 3000, sandbox.machine)
    exposure_close(exposure=made, actor=home.member)
    exposure_close(exposure=made, actor=home.member)
    assert exposure_find(kind=ExposureKind.HTTP, gateway_port=made.gateway_port) is None
    assert exposures_open(keys=[made.pk, other.pk]) == {other.pk}
    assert list(AuditEntry.objects.filter(target=sandbox.public_id).values_list("action", flat=True)) == [
        "exposure.create",
        "exposure.create",
        "exposure.bind",
        "exposure.close",
    ]
    told = str([*AuditEntry.objects.values_list("detail"), *Event.objects.values_list("payload")])
    assert made.name not in told
    assert str(made.gateway_port) not in told


def test_names_below_a_domain(home: Team, quiet_database: None, settings: Any) -> None:
    """With a domain each has a name that nobody can guess; the port is said where it is not the usual one."""
    settings.ATOLL = {**settings.ATOLL, "expose_domain": "box.example"}
    for port, said in ((443, ""), (8443, ":8443")):
        GatewayProcess.objects.all().delete()
        gateway_seen(process=uuid.uuid4(), listening=Listening(domain_port=port))
        made = exposure_reserve(sandbox=row(home, state="running"), actor=home.member)
        assert made.domain == f"{made.name}.box.example{said}"
        assert len(made.name) == 32
        assert made.gateway_port is None
        assert exposure_find(kind=ExposureKind.HTTP, name=made.name) == made
        assert exposure_find(kind=ExposureKind.SSH, name=made.name) is None


def test_without_a_gateway(home: Team, gateway: uuid.UUID) -> None:
    """One that has been silent for a while is not there: nobody is sent to it."""
    GatewayProcess.objects.update(seen_at=timezone.now() - timedelta(minutes=1))
    with pytest.raises(Unavailable, match="does not run"):
        exposure_reserve(sandbox=row(home, state="running"), actor=home.member)


def test_ports_run_out(home: Team, gateway: uuid.UUID, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it is said so; those of closed ones are free again. One sandbox cannot have all there is."""
    sandbox = row(home, state="running")
    made = [exposure_reserve(sandbox=sandbox, actor=home.member) for _ in PORTS]
    with pytest.raises(QuotaExceeded, match="all ports"):
        exposure_reserve(sandbox=sandbox, actor=home.member)
    exposure_close(exposure=made[0], actor=SYSTEM)
    monkeypatch.setattr(exposures, "MOST", 2)
    with pytest.raises(QuotaExceeded, match="of this sandbox"):
        exposure_reserve(sandbox=sandbox, actor=home.member)
    monkeypatch.setattr(exposures, "MOST", 3)
    assert exposure_reserve(sandbox=sandbox, actor=home.member).gateway_port == made[0].gateway_port


def test_who_may(home: Team, other: Team, gateway: uuid.UUID) -> None:
    """Members of the organization; for others it does not exist. A foreign address cannot be bound."""
    sandbox, foreign = row(home, state="running"), row(other, state="running")
    with pytest.raises(Forbidden):
        exposure_reserve(sandbox=sandbox, actor=home.viewer)
    with pytest.raises(NotFound):
        exposure_reserve(sandbox=sandbox, actor=other.owner)
    made = exposure_reserve(sandbox=sandbox, actor=home.member)
    with pytest.raises(NotFound):
        exposure_bind(sandbox=foreign, actor=other.owner, domain=made.domain, port=80)
    with pytest.raises(NotFound):
        exposure_bind(sandbox=sandbox, actor=other.owner, domain=made.domain, port=80)
    with pytest.raises(NotFound):
        exposure_close(exposure=made, actor=other.owner)


@pytest.mark.parametrize("target", [{}, {"port": 0}, {"port": 65_536}, {"port": 1, "pid": 1}, {"pid": 0}])
def test_targets_that_are_none(home: Team, gateway: uuid.UUID, target: dict[str, int]) -> None:
    """Exactly one of a port and a process."""
    sandbox = row(home, state="running")
    made = exposure_reserve(sandbox=sandbox, actor=home.member)
    with pytest.raises(Invalid):
        exposure_bind(sandbox=sandbox, actor=home.member, domain=made.domain, **target)


def test_nothing_public(home: Team, gateway: uuid.UUID, settings: Any) -> None:
    """The installation can forbid what needs no more than an address."""
    settings.ATOLL = {**settings.ATOLL, "expose_public": False}
    with pytest.raises(Forbidden, match="ATOLL_EXPOSE_PUBLIC"):
        exposure_reserve(sandbox=row(home, state="running"), actor=home.member)


@pytest.mark.parametrize("kind", ["sandbox", "workspace"])
def test_it_ends_with_the_sandbox(home: Team, gateway: uuid.UUID, kind: str) -> None:
    """In the same transaction, so that its port is free; nothing of what has ended can be exposed."""
    sandbox = row(home, state="running", kind=kind)
    made = exposure_reserve(sandbox=sandbox, actor=home.member)
    assert sandbox_move(sandbox=sandbox, move=Move.STOP, actor=home.member)

    made.refresh_from_db()
    assert made.closed_at is not None
    with pytest.raises(Conflict):
        exposure_reserve(sandbox=sandbox, actor=home.member)


def test_a_suspended_one_stays_exposed(home: Team, gateway: uuid.UUID) -> None:
    """Whoever comes has it resumed."""
    sandbox = row(home, state="running")
    made = exposure_reserve(sandbox=sandbox, actor=home.member)
    for move in (Move.SUSPEND, Move.SUSPENDED):
        assert sandbox_move(sandbox=sandbox, move=move, actor=home.member)
    assert sandbox.state == SandboxState.SUSPENDED
    assert exposures_open(keys=[made.pk]) == {made.pk}


def test_an_expired_one_is_closed_to_visitors(home: Team, gateway: uuid.UUID) -> None:
    """By its time alone."""
    made = exposure_reserve(sandbox=row(home, state="running"), actor=home.member)
    Exposure.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert exposures_open(keys=[made.pk]) == set()
