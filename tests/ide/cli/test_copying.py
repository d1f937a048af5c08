"""What is a path here and what in a sandbox, and what of a sandbox's archive is taken."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from ide.cli import copying
from ide.cli.copying import Place
from ide.cli.errors import Failure


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("box:a/b", Place("box", "a/b")),
        ("box:", Place("box", ".")),
        ("box:a:b", Place("box", "a:b")),
        ("./a:b", Place("", "./a:b")),
        ("/tmp/a:b", Place("", "/tmp/a:b")),
        ("file", Place("", "file")),
    ],
)
def test_places(text: str, place: Place) -> None:
    assert copying.place_of(text) == place


def test_a_target_is_a_directory_or_a_name(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    assert copying.target_here(str(tmp_path / "there"), several=True, name="a") == (tmp_path / "there", "a")
    assert copying.target_here(str(tmp_path / "b"), several=False, name="a") == (tmp_path, "b")
    assert copying.target_here(str(tmp_path / "new") + "/", several=True, name="a") == (tmp_path / "new", "a")
    with pytest.raises(Failure):
        copying.target_here(str(tmp_path / "b"), several=True, name="a")


@pytest.mark.parametrize("path", ["..", "a/..", "/", "."])
def test_what_has_no_name_is_refused(path: str) -> None:
    with pytest.raises(Failure):
        copying.name_of(path)


def test_names_that_were_not_asked_for_are_refused() -> None:
    """A sandbox's archive has members below the one name that was asked for, and hard links to no others."""
    member = tarfile.TarInfo("tree/file")
    assert copying._renamed(member, "tree", "copy").name == "copy/file"
    with pytest.raises(Failure):
        copying._renamed(tarfile.TarInfo("other"), "tree", "copy")
    link = tarfile.TarInfo("tree/link")
    link.type, link.linkname = tarfile.LNKTYPE, "tree/file"
    assert copying._renamed(link, "tree", "copy").linkname == "copy/file"
    link.linkname = "/etc/passwd"
    with pytest.raises(Failure):
        copying._renamed(link, "tree", "copy")
