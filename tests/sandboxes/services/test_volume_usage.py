"""What volumes take on disk is counted by the hour: each second once, and many at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta

from sandboxes.database import in_thread
from sandboxes.models import Volume, VolumeHour
from sandboxes.selectors.usage import usage_report
from sandboxes.services import volume_usage, volumes
from tests.factories import Team
from tests.sandboxes.services.test_lifecycle import in_parallel
from tests.sandboxes.services.test_volumes import make
from vm.fake import FakeNode

TEN = datetime(2026, 11, 25, 10, tzinfo=UTC)


async def test_each_second_on_disk_counts_once(home: Team, node: FakeNode) -> None:
    """Eight who count at once, an hour's border, and nothing once it is deleted."""
    volume = await make(home)
    await in_thread(Volume.objects.update, allocated=1000, measured_at=TEN)
    info = (await node.volume_list())[0]

    def count(minutes: int) -> None:
        now = TEN + timedelta(minutes=minutes)
        assert in_parallel(lambda: volume_usage._measure_all({volume.disk: info}, now), 8) == [None] * 8

    await in_thread(count, 90)
    hours = await in_thread(lambda: list(VolumeHour.objects.order_by("hour").values_list("byte_seconds", flat=True)))
    assert hours == [1000 * 3600, 1000 * 1800]
    await in_thread(count, 120)
    total = 1000 * 5400 + info.allocated * 1800
    report = await in_thread(usage_report, actor=home.viewer, first=TEN.date(), last=TEN.date())
    assert report.volumes_use.disk_byte_seconds == report.total.disk_byte_seconds == total
    await in_thread(volumes.volume_delete, volume=volume, actor=home.member)
    await volume_usage.volumes_collect()
    assert await in_thread(VolumeHour.objects.count) == 2


async def test_workers_with_different_answers_count_once(home: Team, node: FakeNode) -> None:
    """Each asked at another time: what is counted is what the last of them knew."""
    volume = await make(home)
    info = (await node.volume_list())[0]
    await in_thread(Volume.objects.update, allocated=info.allocated, flattened=info.flattened, measured_at=TEN)
    asked = [TEN + timedelta(minutes=minutes) for minutes in range(10, 50, 5)]

    def work() -> None:
        volume_usage._measure_all({volume.disk: info}, asked.pop())

    def total() -> float:
        assert in_parallel(work, 8) == [None] * 8
        return VolumeHour.objects.get().byte_seconds

    assert info.allocated > 0
    assert await in_thread(total) == info.allocated * 45 * 60
    await in_thread(volume.refresh_from_db)
    assert volume.measured_at == TEN + timedelta(minutes=45)


async def test_many_volumes_cost_no_more_queries_than_one(
    home: Team, node: FakeNode, django_assert_max_num_queries: Callable[..., AbstractContextManager[object]]
) -> None:
    """First readings, later ones, and those that say nothing new; each counts what its own volume took."""
    made = [await make(home, f"v{number}") for number in range(30)]
    infos = {info.volume: info for info in await node.volume_list()}

    def prepare() -> None:
        for number, volume in enumerate(made):
            Volume.objects.filter(pk=volume.pk).update(allocated=number, measured_at=TEN)

    def count(minutes: int, most: int) -> None:
        with django_assert_max_num_queries(most):
            volume_usage._measure_all(infos, TEN + timedelta(minutes=minutes))

    def check() -> None:
        counted = [[hour.byte_seconds for hour in volume.usage_hours.order_by("hour")] for volume in made]
        taken = infos[made[0].disk].allocated
        assert counted == [[number * 2400 + taken * 1200, taken * 1800] for number in range(30)]

    await in_thread(prepare)
    for minutes, most in ((40, 8), (90, 8), (90, 1)):
        await in_thread(count, minutes, most)
    await in_thread(check)
