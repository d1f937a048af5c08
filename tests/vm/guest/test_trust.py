"""A guest trusts whom it is told to, in one store for everybody, and tells itself nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from vm.guest.agent.trust import BUNDLE, EXTRA, trust
from vm.host.authority import authority_hash, authority_make


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc/ssl/certs").mkdir(parents=True)
    (tmp_path / "usr/local/share/ca-certificates").mkdir(parents=True)
    (tmp_path / BUNDLE[1:]).write_text("DEBIAN'S\nHOST'S\n")
    (tmp_path / "usr/local/share/ca-certificates/host-corp.crt").write_text("HOST'S\n")
    return tmp_path


def _authority(place: Path, name: str) -> str:
    authority_make(certificate=place / f"{name}.pem", key=place / f"{name}.key")
    return (place / f"{name}.pem").read_text()


def test_whom_a_guest_trusts_is_replaced_as_a_whole(root: Path, tmp_path: Path) -> None:
    """The distribution's stay; ours are there once, also by their hash; what was trusted before is not any more."""
    first, second = (_authority(tmp_path, name) for name in ("first", "second"))
    for _ in range(2):
        trust([first, "HOST'S\n"], [authority_hash(first), "0123abcd"], str(root))
        assert (root / BUNDLE[1:]).read_text() == f"DEBIAN'S\n{first}HOST'S\n"
        assert (root / EXTRA[1:]).read_text() == f"{first}HOST'S\n"
    hashed = [path for path in (root / "etc/ssl/certs").iterdir() if path.suffix == ".0"]
    assert {path.stem: path.read_text() for path in hashed} == {authority_hash(first): first, "0123abcd": "HOST'S\n"}
    trust([second], [authority_hash(second)], str(root))
    assert (root / BUNDLE[1:]).read_text() == f"DEBIAN'S\n{second}"
    assert [path.stem for path in (root / "etc/ssl/certs").glob("*.0")] == [authority_hash(second)]
    names = [path.name for path in (root / "usr/local/share/ca-certificates").iterdir()]
    assert names == ["atoll-0.crt"]
