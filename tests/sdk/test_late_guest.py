"""A machine that takes longer to boot than a client waits for its handshake."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from deno_sandbox import DenoDeploy

from tests.sdk.conftest import Server
from tests.sdk.test_javascript import modules, node

__all__ = ["modules"]
pytestmark = [pytest.mark.sdk, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


def test_python(slow_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python client, which gives up a handshake after ten seconds, gets its answer after five, and then waits."""
    for name, value in slow_server.client_environment().items():
        monkeypatch.setenv(name, value)
    began = time.monotonic()
    with DenoDeploy().sandbox.create(env={"A": "b"}) as sandbox:
        assert 4 < time.monotonic() - began < 9
        assert sandbox.env.get("A") == "b"
        assert time.monotonic() - began > 10


def test_javascript(slow_server: Server, modules: Path, tmp_path: Path) -> None:
    """The JavaScript client sets its environment at once, and that waits as well."""
    (tmp_path / "node_modules").symlink_to(modules.parents[1])
    (tmp_path / "late.mjs").write_text(
        'import { Sandbox } from "@deno/sandbox";\n'
        'const sandbox = await Sandbox.create({ env: { A: "b" } });\n'
        "console.log(await sandbox.sh`echo $A`.text());\n"
        "await sandbox.close();\n"
    )
    assert node(slow_server, "late.mjs", cwd=tmp_path).strip() == "b"
