"""Lists of files, packed and compared; a guest's words are taken for what they are."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sandboxes import file_lists
from sandboxes.errors import Invalid


def listed(directory: Path) -> bytes:
    """As a guest's `find` says it."""
    command = ["find", "-H", f"{directory}/", "-xdev", "-mindepth", "1", "-printf", file_lists.FORMAT]
    return file_lists.packed(subprocess.check_output(command))


def test_what_find_says_is_read(tmp_path: Path) -> None:
    """Directories first, then by name; names may hold tabs and new lines."""
    (tmp_path / "srv" / "deep").mkdir(parents=True)
    (tmp_path / "srv" / "tide\tand\nwind").write_text("high")
    (tmp_path / "srv" / "link").symlink_to("deep")
    listing = listed(tmp_path)
    top, more = file_lists.within(listing, "/")
    assert ([entry.path for entry in top], more) == (["srv"], False)
    found, _ = file_lists.within(listing, "/srv/")
    assert [(entry.name, entry.kind) for entry in found] == [
        ("deep", "directory"),
        ("link", "link"),
        ("tide\tand\nwind", "file"),
    ]
    assert found[2].size == 4
    assert file_lists.within(listing, "srv/deep") == ([], False)
    for wrong in ("/nowhere", "/srv/link", "/sr"):
        with pytest.raises(Invalid):
            file_lists.within(listing, wrong)


def test_differences(tmp_path: Path) -> None:
    """Added, removed and changed files are told apart, in the order of their paths; a directory's time is no change."""
    (tmp_path / "a").mkdir()
    for name in ("a/gone", "a/grows", "a/stays", "b.txt", "runs"):
        (tmp_path / name).write_text("x")
    before = listed(tmp_path)
    (tmp_path / "a" / "gone").unlink()
    (tmp_path / "a" / "grows").write_text("xyz")
    (tmp_path / "a" / "new").write_text("")
    (tmp_path / "runs").chmod(0o755)
    after = listed(tmp_path)
    found, more = file_lists.differences(before, after)
    assert [(one.what, one.entry.path) for one in found] == [
        ("removed", "a/gone"),
        ("changed", "a/grows"),
        ("added", "a/new"),
        ("changed", "runs"),
    ]
    assert not more
    assert found[1].entry.size == 3
    assert file_lists.differences(after, after) == ([], False)
    assert [one.what for one in file_lists.differences(file_lists.packed(b""), after)[0]] == ["added"] * 6


def test_what_is_no_line_is_left_out() -> None:
    """A guest may print anything: what cannot be a file is none, and bytes that are no text are shown as such."""
    told = b"\0".join(
        [
            b"f\t644\t5\t1.5\tfine",
            b"f\t644\t5\t1.5\t",
            b"f\t644\tfive\t1.5\tx",
            b"junk",
            b"f\t644\t-1\t1.5\tx",
            b"f\t644\t5\tnan\tx",
            b"q\t644\t5\t1.5\tcaf\xe9",
            b"f\t644\t5\t1.5\t" + b"x" * 9000,
        ]
    )
    assert [(entry.path, entry.kind) for entry in file_lists.entries(file_lists.packed(told))] == [
        ("caf�", "other"),
        ("fine", "file"),
    ]


def test_no_more_is_shown_than_can_be() -> None:
    """Whatever there is beyond the bound is said to be there."""
    told = b"\0".join(b"f\t644\t5\t1.5\tf%05d" % number for number in range(file_lists.SHOWN + 1))
    listing = file_lists.packed(told)
    found, more = file_lists.within(listing, "")
    assert (len(found), more) == (file_lists.SHOWN, True)
    changes, more = file_lists.differences(file_lists.packed(b""), listing)
    assert (len(changes), more) == (file_lists.SHOWN, True)
