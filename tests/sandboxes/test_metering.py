"""From readings to hours: whatever happens and whenever it is looked at, what was used is counted once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxes import metering
from sandboxes.metering import HOUR, Reading
from sandboxes.prices import Use
from vm.api import MachineInfo, MachineState, StopReason

NINE = datetime(2026, 11, 30, 9, tzinfo=UTC).timestamp()
S = MachineState
DISK = 3 * 2**30


def info(state: MachineState, *, since: float, cpu: float = 0.0, disk: int = 0, **more: object) -> MachineInfo:
    return MachineInfo(
        machine="0" * 32,
        state=state,
        memory_mib=1280,
        vcpus=2,
        since=since,
        cpu_seconds=cpu,
        disk_bytes=disk,
        **more,  # type: ignore[arg-type]
    )


def between(last: Reading, now: MachineInfo, at: float, *, ready_at: float | None = NINE) -> dict[datetime, Use]:
    return metering.use_between(last, metering.read(now, at=at, keeps_disk=True), now, ready_at=ready_at)


def total(hours: dict[datetime, Use]) -> Use:
    return sum(hours.values(), Use())


def test_an_hour_s_border_parts_what_was_used() -> None:
    """Ten minutes before and thirty after: each hour gets its part, also of the processor's time."""
    last = Reading(at=NINE + 3000, in_memory=True, cpu_seconds=10, disk_bytes=100)
    found = between(last, info(S.READY, since=NINE, cpu=18, disk=300), NINE + 5400)
    nine, ten = (datetime.fromtimestamp(NINE + hour * HOUR, UTC) for hour in (0, 1))
    assert found[nine] == Use(cpu_seconds=2, memory_mib_seconds=600 * 1280, disk_byte_seconds=600 * 100)
    assert found[ten] == Use(cpu_seconds=6, memory_mib_seconds=1800 * 1280, disk_byte_seconds=1800 * 100)
    assert set(found) == {nine, ten}


def test_a_gap_counts_until_the_machine_ended() -> None:
    """Nobody looked for three hours; it had stopped after one, and only its disk was kept for all of them."""
    last = Reading(at=NINE, in_memory=True, cpu_seconds=10, disk_bytes=100)
    found = between(last, info(S.STOPPED, since=NINE + HOUR, cpu=70, disk=100), NINE + 3 * HOUR)
    memory = {hour.hour: use.memory_mib_seconds for hour, use in found.items()}
    assert memory == {9: 1280.0 * HOUR, 10: 0, 11: 0}
    assert total(found) == Use(60, 1280.0 * HOUR, 300.0 * HOUR)


def test_a_gap_counts_only_the_run_that_is_there() -> None:
    """It ran before the gap and runs again since a minute: what was between is unknown, and is not invented."""
    last = Reading(at=NINE, in_memory=True, cpu_seconds=10, disk_bytes=0)
    ready = info(S.READY, since=NINE + HOUR - 60, cpu=30, stages={"queue": 500.0, "boot": 5.0})
    found = between(last, ready, NINE + HOUR, ready_at=None)
    assert total(found) == Use(cpu_seconds=20, memory_mib_seconds=65 * 1280)


@pytest.mark.parametrize("state", [S.STOPPED, S.READY])
def test_a_counter_that_went_back_is_no_new_use(state: MachineState) -> None:
    """Its host lost power and has an old record: what it counted before is known, and only what follows is new."""
    last = Reading(at=NINE, in_memory=True, cpu_seconds=500, disk_bytes=0)
    back = info(state, since=NINE + 10, cpu=400, stop_reason=None if state is S.READY else StopReason.HOST_RESTARTED)
    this = metering.read(back, at=NINE + 20, keeps_disk=True)
    assert total(between(last, back, NINE + 20, ready_at=None)).cpu_seconds == 0
    known = metering.settled(last, this, back)
    assert known.cpu_seconds == 400
    again = info(S.READY, since=NINE + 30, cpu=407)
    assert total(between(known, again, NINE + 40, ready_at=None)).cpu_seconds == 7


def test_an_answer_that_came_late_takes_nothing_back() -> None:
    """Two workers asked at once: the lower counter is the older answer, and is not a machine made anew."""
    last = Reading(at=NINE + 10, in_memory=True, cpu_seconds=500, disk_bytes=0)
    ready = info(S.READY, since=NINE, cpu=499)
    this = metering.read(ready, at=NINE + 11, keeps_disk=True)
    assert total(between(last, ready, NINE + 11)).cpu_seconds == 0
    assert metering.settled(last, this, ready).cpu_seconds == 500


def test_an_answer_from_before_the_stop_is_thrown_away() -> None:
    stopped = Reading(at=NINE + 100, in_memory=False, cpu_seconds=5, disk_bytes=0)
    late = info(S.READY, since=NINE, cpu=4)
    assert metering.overtaken(stopped, metering.read(late, at=NINE + 101, keeps_disk=True), late)
    again = info(S.READY, since=NINE + 101, cpu=6)
    assert not metering.overtaken(stopped, metering.read(again, at=NINE + 103, keeps_disk=True), again)


def test_a_run_that_nobody_saw_counts_from_when_its_row_says_it_came_up() -> None:
    last = Reading(at=NINE, in_memory=False, cpu_seconds=10, disk_bytes=0)
    stopped = info(S.STOPPED, since=NINE + 600, cpu=40, stages={"boot": 10.0})
    assert total(between(last, stopped, NINE + 700, ready_at=NINE + 100)) == Use(30, 510 * 1280)
    assert total(between(last, stopped, NINE + 700, ready_at=NINE - 100)) == Use(cpu_seconds=30)


@pytest.mark.parametrize("reason", sorted(metering.FOUND_LATER))
def test_a_host_that_was_off_is_not_a_machine_that_ran(reason: StopReason) -> None:
    """The node dates such an end by when it found it, two days later: only what was seen counts, and the processor."""
    last = Reading(at=NINE, in_memory=True, cpu_seconds=10, disk_bytes=0)
    stopped = info(S.STOPPED, since=NINE + 48 * HOUR, cpu=13, stop_reason=reason)
    found = between(last, stopped, NINE + 48 * HOUR + 5, ready_at=NINE - 60)
    assert found == {datetime.fromtimestamp(NINE, UTC): Use(cpu_seconds=3)}


@pytest.mark.parametrize("state", [S.QUEUED, S.SUSPENDED, S.STOPPED])
def test_what_is_not_in_memory_uses_none(state: MachineState) -> None:
    last = Reading(at=NINE, in_memory=False, cpu_seconds=5, disk_bytes=10)
    assert total(between(last, info(state, since=NINE - 5, cpu=5, disk=10), NINE + 50)) == Use(disk_byte_seconds=500)


@dataclass(frozen=True, slots=True)
class Phase:
    state: MachineState
    begin: float
    end: float
    run: int  # which of its runs this belongs to
    boot: float  # how long that run took to start
    cpu: float  # counter at its begin
    rate: float  # CPU seconds a second
    lost: float = 0.0  # CPU seconds by which the counter went back at its begin: the host lost power

    def at(self, moment: float) -> MachineInfo:
        return info(
            self.state,
            since=self.begin,
            cpu=self.cpu + self.rate * (moment - self.begin),
            disk=DISK,
            stages={"queue": 3.0, "boot": self.boot},
        )


spans = st.integers(1, 20_000).map(lambda quarter: quarter / 4)


@st.composite
def lives(draw: st.DrawFn) -> list[Phase]:
    """Some runs, each ended by a stop or a suspend, from somewhere within an hour on."""
    clock = NINE + draw(st.integers(0, 14_000)) / 4
    cpu, phases = 0.0, []
    for run in range(draw(st.integers(1, 4))):
        boot = draw(st.integers(1, 2_000)) / 4
        rate = draw(st.integers(0, 8)) / 4
        resting = draw(st.sampled_from([S.STOPPED, S.SUSPENDED]))
        stale = resting is S.STOPPED and draw(st.booleans())
        parts = [(S.QUEUED, 3.0, 0.0), (S.STARTING, boot, rate), (S.READY, draw(spans), rate)]
        if resting is S.SUSPENDED:
            parts.append((S.SUSPENDING, draw(st.integers(1, 40)) / 4, rate))
        parts.append((resting, draw(spans), 0.0))
        for state, length, speed in parts:
            lost = draw(st.integers(0, 100)) / 100 * cpu if stale and state is S.STOPPED else 0.0
            cpu -= lost
            phases.append(Phase(state, clock, clock + length, run, boot, cpu, speed, lost))
            clock, cpu = clock + length, cpu + speed * length
    return phases


def readings(
    draw: st.DataObject, phases: list[Phase], *, followed: bool
) -> Iterator[tuple[float, Phase, float | None]]:
    """When it is looked at: at random, and, where `followed`, also once it runs and once it has ended.

    With each, when its row says that it came up; where nobody follows it, the row may know that before or after.
    """
    ready_at: float | None = None
    for phase in phases:
        if phase.state is S.QUEUED:
            ready_at = None
        told = followed and phase.state in (S.READY, S.STOPPED, S.SUSPENDED)
        for share in ([0.005] if told else []) + sorted(
            draw.draw(st.lists(st.floats(0.01, 0.99), max_size=4 if followed else 1))
        ):
            moment = phase.begin + (phase.end - phase.begin) * share
            if phase.state is S.READY and not followed and draw.draw(st.booleans()):
                ready_at = phase.begin
            yield moment, phase, ready_at
            if phase.state is S.READY and ready_at is None and followed:
                ready_at = moment
        if phase.state is S.READY and not followed:
            ready_at = phase.begin
    yield phases[-1].end, phases[-1], ready_at


def count(draw: st.DataObject, phases: list[Phase], *, followed: bool) -> dict[datetime, Use]:
    """What all readings together put into the hours, each of them made twice."""
    last = Reading(at=phases[0].begin, in_memory=False, cpu_seconds=0, disk_bytes=DISK)
    hours: dict[datetime, Use] = {}
    for moment, phase, ready_at in readings(draw, phases, followed=followed):
        said = phase.at(moment)
        for _ in range(2):
            this = metering.read(said, at=moment, keeps_disk=True)
            if metering.overtaken(last, this, said):
                continue
            for hour, use in metering.use_between(last, this, said, ready_at=ready_at).items():
                hours[hour] = hours.get(hour, Use()) + use
            last = metering.settled(last, this, said)
    return hours


def truth(phases: list[Phase]) -> dict[datetime, float]:
    """MiB-seconds in memory, summed the slow way: a quarter of a second at a time."""
    hours: dict[datetime, float] = {}
    for phase in phases:
        if phase.state in (S.STARTING, S.READY, S.SUSPENDING):
            moment = phase.begin
            while moment < phase.end:
                hour = datetime.fromtimestamp(moment // HOUR * HOUR, UTC)
                hours[hour] = hours.get(hour, 0.0) + 1280 / 4
                moment += 0.25
    return hours


@settings(deadline=None)
@given(st.data(), lives())
def test_all_hours_together_are_what_happened(draw: st.DataObject, phases: list[Phase]) -> None:
    """However often and whenever it is looked at beside, every hour has what was used in it."""
    found = count(draw, phases, followed=True)
    memory = {hour: use.memory_mib_seconds for hour, use in found.items() if use.memory_mib_seconds > 1e-3}
    assert memory == pytest.approx(truth(phases), abs=1e-2)
    check_certain(found, phases)


@settings(deadline=None)
@given(st.data(), lives())
def test_nothing_is_invented(draw: st.DataObject, phases: list[Phase]) -> None:
    """Where beginnings and ends were missed there may be less, and in no hour more."""
    found = count(draw, phases, followed=False)
    expected = truth(phases)
    assert all(use.memory_mib_seconds <= expected.get(hour, 0.0) + 1e-2 for hour, use in found.items())
    check_certain(found, phases)


def check_certain(found: dict[datetime, Use], phases: list[Phase]) -> None:
    """Processor time is told by a counter, and a disk that is there was there: nothing of them is ever lost.

    But for the processor time that a host forgot at a loss of power: it counts as far as it had been read before.
    """
    used = sum(phase.rate * (phase.end - phase.begin) for phase in phases)
    forgotten = sum(phase.lost for phase in phases)
    kept = DISK * (phases[-1].end - phases[0].begin)
    assert used - forgotten - 1e-6 <= total(found).cpu_seconds <= used + 1e-6
    assert total(found).disk_byte_seconds == pytest.approx(kept)
