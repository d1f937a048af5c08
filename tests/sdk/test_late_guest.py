"""A machine that takes longer to boot than a client waits for its handshake, or never does."""

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


def test_python_is_told_why_no_guest_came(empty_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handshake has been answered by then: the call that waits fails, with the reason."""
    for name, value in empty_server.client_environment().items():
        monkeypatch.setenv(name, value)
    with DenoDeploy().sandbox.create() as sandbox, pytest.raises(Exception, match="did not answer in time"):
        sandbox.spawn("true")


def test_javascript_is_told_why_no_guest_came(empty_server: Server, modules: Path, tmp_path: Path) -> None:
    """So it is in the other client."""
    (tmp_path / "node_modules").symlink_to(modules.parents[1])
    (tmp_path / "never.mjs").write_text(
        'import { Sandbox } from "@deno/sandbox";\n'
        "const sandbox = await Sandbox.create();\n"
        "try { await sandbox.sh`true`; console.log('it ran'); } catch (error) { console.log(String(error)); }\n"
        "process.exit(0);\n"
    )
    assert "did not answer in time" in node(empty_server, "never.mjs", cwd=tmp_path)
