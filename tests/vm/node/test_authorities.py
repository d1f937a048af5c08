"""Whom a guest is told to trust."""

from __future__ import annotations

from pathlib import Path

import pytest

from vm.host.authority import authority_make
from vm.image import hashes
from vm.node.config import NodeConfig
from vm.node.start import authorities
from vm.storage.layout import Layout


@pytest.mark.parametrize("host_store", [True, False])
def test_the_installation_and_if_wanted_whom_its_host_trusts(
    host_store: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an administrator gave to the host is the guest's too, unless he says otherwise."""
    layout = Layout(tmp_path)
    (tmp_path / "keys").mkdir()
    authority_make(certificate=layout.authority, key=layout.authority_key)
    (tmp_path / "corp.crt").write_text("CORP")
    monkeypatch.setattr(hashes, "HOST_CERTIFICATES", tmp_path)
    config = NodeConfig(data=tmp_path, image_cache=tmp_path, key_file=tmp_path, trust_host_store=host_store)
    assert authorities(config, layout) == [layout.authority.read_text(), *(["CORP"] if host_store else [])]
