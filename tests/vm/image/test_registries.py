"""Registries are read from what tools say of themselves; nothing is guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from vm.image import registries
from vm.storage.images import image_find


def test_hosts_are_read_from_urls() -> None:
    said = "'http://mirror.example/debian/dists/x/InRelease' mirror.example_x 0\nhttps://index.example:8443/simple/ x\n"
    assert registries.hosts_of(said) == {"mirror.example:80", "index.example:8443"}
    assert registries.hosts_of("undefined") == set()


def test_a_tool_that_names_none_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list without its registries would look complete: where a tool cannot be asked, no image is made."""
    (tmp_path / "usr").mkdir()
    with pytest.raises(OSError, match="does not say"):
        registries.of_tree(tmp_path)
    monkeypatch.setattr(registries, "_ASK", (("true",),))
    with pytest.raises(OSError, match="asks no registry"):
        registries.of_tree(Path("/"))


def test_an_image_of_an_earlier_format_names_none(tmp_path: Path) -> None:
    place = tmp_path / "abc"
    place.mkdir()
    fields = '"kernel": "k", "initrd": "i", "root": "r", "root_format": "raw", "cmdline": ""'
    (place / "manifest.json").write_text(f"{{{fields}}}")
    assert image_find(tmp_path, "abc").registries == ()
    (place / "manifest.json").write_text(f'{{{fields}, "registries": ["mirror.example:80"]}}')
    assert image_find(tmp_path, "abc").registries == ("mirror.example:80",)
