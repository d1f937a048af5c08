from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.vm.host.test_install import APT, PIP, UV
from vm.image import build, hashes, recipe, sources


def test_the_hash_is_stable() -> None:
    """The same checkout on the same host has the same image."""
    assert hashes.current_hash() == hashes.current_hash()
    assert re.fullmatch(r"[0-9a-f]{32}", hashes.current_hash())


@pytest.mark.parametrize(
    ("name", "value"),
    [("CMDLINE", "other"), ("PACKAGES", ("bash",)), ("WHEELS", ("deno==1",)), ("ROOT_GIB", 11), ("BOOT_MODULES", ())],
)
def test_a_changed_recipe_is_another_image(monkeypatch: pytest.MonkeyPatch, name: str, value: object) -> None:
    """Whatever is in the recipe is in the hash."""
    before = hashes.current_hash()
    monkeypatch.setattr(recipe, name, value)

    assert hashes.current_hash() != before


def test_a_changed_agent_keeps_the_debian_tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A change of the agent makes another image on the same base."""
    image, base = hashes.current_hash(), hashes.base_hash()
    changed = tmp_path / "agent.py"
    changed.write_text("changed")
    monkeypatch.setattr(hashes, "agent_sources", lambda: [changed])

    assert hashes.current_hash() != image
    assert hashes.base_hash() == base


def test_the_hosts_certificates_are_in_the_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A host that trusts another authority has another image."""
    before = hashes.current_hash()
    (tmp_path / "company.crt").write_text("-----BEGIN CERTIFICATE-----")
    monkeypatch.setattr(hashes, "HOST_CERTIFICATES", tmp_path)

    assert hashes.current_hash() != before


def test_an_unfinished_image_is_none(tmp_path: Path) -> None:
    """Only a directory with its manifest is an image."""
    place = tmp_path / hashes.current_hash()
    place.mkdir()
    assert hashes.image_path(tmp_path) is None
    (place / "manifest.json").write_text(json.dumps({}))

    assert hashes.image_path(tmp_path) == place
    assert build.build(tmp_path) == place


def test_every_agent_module_goes_in() -> None:
    """The image has the agent's modules, the framing, and nothing else of ours."""
    names = {path.name for path in hashes.agent_sources()}

    assert {"agent.py", "frames.py", "spawner.py", "__init__.py"} <= names
    assert "channel.py" not in names


@pytest.mark.parametrize("said", [PIP, APT, UV, "curl: (7) Failed to connect: Network is unreachable"])
def test_a_build_without_a_network_says_what_to_do(said: str, tmp_path: Path) -> None:
    """Whichever program it is that fetches; without a word of it, there is no advice."""
    assert "is the network up?" in build._advice(said, tmp_path)
    assert build._advice("E: Unable to locate package nonsense", tmp_path) == ""


def test_no_mirror_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A host without a Debian mirror is told what to do."""
    monkeypatch.setattr(build, "_require_host", lambda: None)
    monkeypatch.setattr(sources, "of_host", lambda suite: [])

    assert build.main(["--cache", str(tmp_path)]) == 1
    assert "--mirror" in capsys.readouterr().err
    assert not list(tmp_path.glob(".building-*"))
