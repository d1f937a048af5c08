"""Whether a machine is let in, by what is given and by what the host really has."""

from __future__ import annotations

from functools import partial

import pytest

from vm.node.admission import lacking_mib

roomy = partial(lacking_mib, given=0, coming=0, reserve=512, total=16_384)


@pytest.mark.parametrize(
    ("wanted", "available", "certain", "lacking"),
    [
        (1024, 2048, 0, -1024),
        (1024, 1024, 0, 0),
        (1024, 1000, 0, 24),
        (1024, 1024, 400, 0),
        # Its memory is full of more than half already: that is what it takes
        (1024, 1024, 900, 388),
        (1024, 2048, 2000, 464),
    ],
)
def test_what_it_takes_at_once_counts(wanted: int, available: int, certain: int, lacking: int) -> None:
    """Half of what is configured, or what is certain; beside the reserve."""
    assert roomy(wanted=wanted, available=available, certain=certain) == lacking


def test_no_more_is_given_than_the_host_has_by_half() -> None:
    """Also where nothing of it is used yet."""
    assert lacking_mib(wanted=1024, given=24_000, coming=0, reserve=0, total=16_384, available=16_000) == 448
