"""What doctor says of hooks: each is loaded as an interceptor would."""

from __future__ import annotations

import tempfile
from pathlib import Path

from vm.host.preflight import Level
from vm.host.provision import Users
from vm.node.config import NodeConfig
from vm.node.hooks import hooks_checked

PYTHON = NodeConfig(data=Path(), image_cache=Path(), key_file=Path()).interceptor_python


def test_hooks_that_cannot_be_loaded_are_named() -> None:
    """With what is wrong: not there, not readable, not a hook at all; one that is fine is said to be."""
    words = ("good_hooks.see=api.example", "good_hooks.gone=api.example", "secret_hooks.see=api.example")
    with tempfile.TemporaryDirectory(prefix="atoll-hooks-") as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "good_hooks.py").write_text("def see(request, response=None):\n    pass\n")
        (place / "secret_hooks.py").write_text("def see(request, response=None):\n    pass\n")
        (place / "secret_hooks.py").chmod(0o600)
        found = hooks_checked(words, place, user=Users().proxy, python=PYTHON)
    assert [finding.level for finding in found] == [Level.OK, Level.FAIL, Level.FAIL]
    assert "AttributeError" in found[1].seen
    assert "secret_hooks.see cannot be loaded" in found[2].seen


def test_a_setting_that_cannot_be_read_is_told() -> None:
    """A hook for addresses, or without a host, is none."""
    for word in ("hooks.see", "hooks.see=10.0.0.1", "see=api.example"):
        (finding,) = hooks_checked([word], None, user=Users().proxy, python=PYTHON)
        assert finding.level is Level.FAIL
        assert word in finding.seen
