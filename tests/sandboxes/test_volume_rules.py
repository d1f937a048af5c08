"""Slugs and capacities: what is taken, what not."""

from __future__ import annotations

import pytest

from sandboxes.errors import Invalid
from sandboxes.volume_rules import capacity_of, check_path, check_slug


@pytest.mark.parametrize("slug", ["ab", "a1", "my-volume", "a" * 32, "0-0", "abc--d"])
def test_slugs(slug: str) -> None:
    assert check_slug(slug) == slug


@pytest.mark.parametrize("slug", ["", "a", "a" * 33, "-ab", "ab-", "Ab", "a_b", "ab--c", "ä1", "ab\n", None, 12])
def test_what_is_no_slug(slug: object) -> None:
    with pytest.raises(Invalid) as refused:
        check_slug(slug)
    assert refused.value.fields["field"] == "slug"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/data", "/data"),
        ("//data///x/", "/data/x"),
        ("/var/lib/x", "/var/lib/x"),
        ("/a b/ü", "/a b/ü"),
        ("/tmp/x", "/tmp/x"),
    ],
)
def test_mount_paths(path: str, found: str) -> None:
    assert check_path(path) == found


@pytest.mark.parametrize(
    "path",
    ["", "/", "data", "/..", "/a/../b", "/a/./b", "/etc", "/usr/", "/proc/x", "/dev/x", "/a\0", "/" + "a" * 1000, None],
)
def test_what_is_no_mount_path(path: object) -> None:
    with pytest.raises(Invalid):
        check_path(path)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (300_000_000, 300_000_000),
        ("1GB", 10**9),
        ("1 gb", 10**9),
        ("1.5GB", 1_500_000_000),
        ("1GiB", 2**30),
        ("512MiB", 512 * 2**20),
        ("500000kB", 500_000_000),
        ("400000KB", 400_000_000),
        ("400000KiB", 400_000 * 1024),
        ("1000000000", 10**9),
        ("20GB", 20 * 10**9),
    ],
)
def test_capacities(text: int | str, size: int) -> None:
    assert capacity_of(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "1TB", "-1GB", "1e9", "299MB", "20.1GB", 0, -1, True, None, 1.5, [], "9" * 40, "1GB1"]
)
def test_what_is_no_capacity(text: object) -> None:
    with pytest.raises(Invalid) as refused:
        capacity_of(text)
    assert refused.value.fields["field"] == "capacity"
