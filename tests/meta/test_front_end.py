"""The front end's own tests are part of the suite, and its lock names no place that only some networks reach."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
FRONTEND = CHECKOUT / "frontend"


def node_environment() -> dict[str, str]:
    """With the node that the installation brought, where there is one, before the host's."""
    return {**os.environ, "PATH": f"{CHECKOUT / '.tools' / 'node' / 'bin'}:{os.environ['PATH']}"}


def test_the_front_end_s_own_tests_pass() -> None:
    vitest = FRONTEND / "node_modules" / ".bin" / "vitest"
    if not vitest.exists():
        pytest.fail("the front end's packages are not installed here: make test installs them")
    ran = subprocess.Popen(
        [str(vitest), "run"], cwd=FRONTEND, env=node_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output = ran.communicate(timeout=300)[0]
    assert ran.returncode == 0, output.decode(errors="replace")


def test_the_lock_names_packages_and_not_where_they_come_from() -> None:
    lock = json.loads((FRONTEND / "package-lock.json").read_text())
    assert [name for name, package in lock["packages"].items() if "resolved" in package] == []


def test_every_stage_of_a_start_has_a_sentence() -> None:
    """The page names the node's stages as the node does; a renamed one would be shown as a bare word."""
    node = "".join(path.read_text() for path in (CHECKOUT / "vm" / "node").glob("*.py"))
    timed = re.findall(r'(?:_stage\(record, |timed\(record, |stages\[|stages = \{)"(\w+)"', node)
    page = (FRONTEND / "src" / "core" / "timeline.ts").read_text()
    named = re.search(r"const STAGES[^{]*\{(.*?)\};", page, re.DOTALL)
    assert named is not None
    assert set(timed) == set(re.findall(r"^  (\w+):", named[1], re.MULTILINE))
    assert len(set(timed)) > 5
