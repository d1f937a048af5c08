"""Disks are whole or not there, images are found by hash or by age, and a full disk is said to be one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vm.errors import HostFull, HypervisorError, ImageMissing
from vm.host.run import run
from vm.storage.images import image_find
from vm.storage.layout import Layout, private_directory
from vm.storage.qcow2 import overlay_create


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "small"
    place.mkdir()
    run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)])
    yield place
    run(["umount", str(place)])


def _image(place: Path, when: int) -> None:
    place.mkdir(parents=True)
    (place / "root.img").touch()
    os.truncate(place / "root.img", 2**20)
    manifest = place / "manifest.json"
    manifest.write_text(
        json.dumps({"kernel": "k", "initrd": "i", "root": "root.img", "root_format": "raw", "cmdline": "quiet"})
    )
    os.utime(manifest, (when, when))


def test_the_newest_image_is_taken(tmp_path: Path) -> None:
    """Without a hash the one finished last; half-made directories and path tricks are no images."""
    _image(tmp_path / "a", 2000)
    _image(tmp_path / "b", 1000)
    (tmp_path / "c").mkdir()
    _image(tmp_path / ".building", 3000)
    assert image_find(tmp_path).hash == "a"
    assert image_find(tmp_path, "b").root == tmp_path / "b" / "root.img"
    for odd in ("c", "../a", ".building", "none"):
        with pytest.raises(ImageMissing):
            image_find(tmp_path, odd)


def test_an_overlay_is_whole(tmp_path: Path) -> None:
    """It has the size asked for, belongs to its owner alone, and knows its backing file."""
    _image(tmp_path / "a", 1)
    overlay_create(
        tmp_path / "root.qcow2", backing=tmp_path / "a" / "root.img", backing_format="raw", size_gib=3, owner=None
    )
    said = run(["qemu-img", "info", "--output=json", str(tmp_path / "root.qcow2")])
    info = json.loads(said.stdout)
    assert (info["virtual-size"], info["full-backing-filename"]) == (3 * 2**30, str(tmp_path / "a" / "root.img"))
    assert (tmp_path / "root.qcow2").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "root.new").exists()


def test_no_room_for_an_overlay(tmp_path: Path, small: Path) -> None:
    """A full disk is HostFull, and nothing half-made stays."""
    _image(tmp_path / "a", 1)
    (small / "m").mkdir()
    (small / "filler").write_bytes(bytes(240 * 1024))
    with pytest.raises(HostFull):
        overlay_create(
            small / "m" / "root.qcow2",
            backing=tmp_path / "a" / "root.img",
            backing_format="raw",
            size_gib=10,
            owner=None,
        )
    assert list((small / "m").iterdir()) == []


def test_paths_that_sockets_cannot_have() -> None:
    assert Layout(Path("/var/lib/atoll")).too_long() == 0
    assert Layout(Path("/" + "x" * 60)).too_long() > 0


def test_a_private_directory_is_ours_or_refused(tmp_path: Path) -> None:
    """Made for us alone; one that is open, another's, or a link is refused, as anybody may make some in /dev/shm."""
    mine = tmp_path / "mine"
    private_directory(mine)
    assert mine.stat().st_mode & 0o777 == 0o700
    private_directory(mine)
    mine.chmod(0o755)
    with pytest.raises(HypervisorError, match="not ours"):
        private_directory(mine)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(HypervisorError, match="not ours"):
        private_directory(link)
