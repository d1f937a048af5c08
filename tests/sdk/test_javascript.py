"""The official JavaScript SDK, unmodified, against a running server; its tests are in js/suite.test.mjs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.sdk.conftest import Server

pytestmark = pytest.mark.sdk
HERE = Path(__file__).with_name("js")
TOOLS = Path(__file__).resolve().parents[2] / ".tools" / "node" / "bin"


@pytest.fixture(scope="module")
def modules() -> Path:
    """The SDK from the lock file."""
    if not (HERE / "node_modules" / "@deno" / "sandbox").is_dir():
        npm = shutil.which("npm", path=f"{TOOLS}:{os.environ['PATH']}")
        if npm is None:
            pytest.fail("npm is not installed here: make test installs it")
        subprocess.check_call([npm, "ci", "--no-audit", "--no-fund"], cwd=HERE, env=_environment({}))
    return HERE / "node_modules" / "@deno" / "sandbox"


def _environment(settings: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "PATH": f"{TOOLS}:{os.environ['PATH']}", **settings}


def node(server: Server, *arguments: str, cwd: Path = HERE, timeout: float = 240, program: str | Path = "node") -> str:
    """What a Node program prints; the test fails with it if the program does."""
    done = subprocess.Popen(
        [str(program), *arguments],
        cwd=cwd,
        env=_environment(server.client_environment()),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        out, _ = done.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        done.kill()
        out, _ = done.communicate()
        pytest.fail(f"not done after {timeout} s:\n{out[-5000:]}")
    assert done.returncode == 0, out[-8000:]
    return out


def test_suite(server: Server, modules: Path) -> None:
    """Every promise of the suite holds."""
    out = node(server, "--test", "--test-reporter=spec", "suite.test.mjs", timeout=400)
    found = re.search(r"pass (\d+)", out)
    assert found is not None
    assert int(found[1]) >= 28
