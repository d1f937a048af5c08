"""What is called waste, on real files and real overlays."""

from __future__ import annotations

from pathlib import Path

import pytest

from vm.host.run import run
from vm.image.hashes import base_hash, current_hash
from vm.storage import usage


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, Path]:
    """A data root with one machine that is based on an older image, and an image cache of several ages."""
    data, cache = tmp_path / "data", tmp_path / "cache"
    for folder in (data / "machines" / "m1", data / "disks", data / "logs", data / "db"):
        folder.mkdir(parents=True)
    for name in (current_hash(), "old-and-used", "old", f"base-{base_hash()}", "base-old"):
        (cache / name).mkdir(parents=True)
        (cache / name / "root.img").write_bytes(b"x" * 8192)
    base = cache / "old-and-used" / "root.img"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, data / "disks" / "m1.qcow2"])
    (data / "logs" / "web.log.1").write_text("old")
    return data, cache


def test_only_what_nothing_needs_is_waste(kept: tuple[Path, Path]) -> None:
    """The current image, its tree, and an image some machine is based on stay; the rest may go, and goes."""
    data, cache = kept
    waste = [entry for entry in usage.survey(data=data, image_cache=cache) if entry.waste]
    assert {entry.path.name for entry in waste} == {"old", "base-old", "web.log.1"}
    assert usage.remove(waste) == sum(entry.size for entry in waste)
    assert {path.name for path in cache.iterdir()} == {current_hash(), "old-and-used", f"base-{base_hash()}"}


def test_another_installation_s_machines_count_too(kept: tuple[Path, Path], tmp_path: Path) -> None:
    """Installations share the image cache: what a machine of another one is based on is no waste of ours."""
    data, cache = kept
    (cache / ".roots").mkdir()
    (cache / ".roots" / "one").write_text(str(data))
    (cache / ".roots" / "gone").write_text(str(tmp_path / "gone"))
    other = tmp_path / "other"
    (other / "machines").mkdir(parents=True)
    waste = {entry.path.name for entry in usage.survey(data=other, image_cache=cache) if entry.waste}
    assert "old-and-used" not in waste


def test_an_unreadable_disk_makes_nothing_waste(kept: tuple[Path, Path]) -> None:
    """While it is unknown what a machine is based on, no image is offered for removal."""
    data, cache = kept
    (data / "disks" / "m1.qcow2").write_bytes(b"QFI\xfb\x00\x00\x00\x09garbage")
    with pytest.raises(OSError, match="nothing is called waste"):
        usage.survey(data=data, image_cache=cache)


def test_sparse_files_count_what_they_take(tmp_path: Path) -> None:
    """A 10 GiB image with little in it is shown as little."""
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10 * 2**30)
    assert usage.allocated(tmp_path) < 2**20
