"""The doctor on this very host: it boots a machine, tries to get out of it, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.installation import CHECKOUT
from vm.node.isolation import WAYS

pytestmark = pytest.mark.live


def test_proves_that_a_guest_reaches_its_gate_only() -> None:
    """Every part of the host is judged, a machine boots, and its root reaches nothing."""
    before = set(os.listdir("/run/netns")) if Path("/run/netns").exists() else set()
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run(  # noqa: TID251
        [sys.executable, "manage.py", "doctor", "--isolation"],
        cwd=CHECKOUT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        "control: the one host that is allowed is reached",
        "this host: its servers, TCP and UDP on every address, heard of nobody",
        *(f"{way}: " for way in WAYS),
        "  tcp 0xa9fea9fe:80: the gate said no",
        "routes: a guest has one",
        "name lookup: a virtual address",
    ):
        assert f"ok    {line}" in done.stdout, done.stdout
    left = {name for name in os.listdir("/run/netns") if name not in before}
    assert not {name for name in left if "doctor" in name}
