"""The doctor on this very host: it boots a machine, tries to get out of it, and leaves nothing behind."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.installation import CHECKOUT, processes
from vm.image.build import DEFAULT_CACHE
from vm.node.isolation import WAYS

pytestmark = pytest.mark.live

# Places that a node makes things in, empty and its own, so that other tests' machines are not taken for its leftovers
ALONE = """
mkdir -p /run/netns
for place in /dev/shm /run/netns /mnt; do mount -t tmpfs none $place; done
before=$(grep atoll /proc/mounts)
TMPDIR=/mnt {doctor}
code=$?
ls -d /dev/shm/* /run/netns/* /mnt/* 2>/dev/null | sed 's/^/LEFT /'
grep atoll /proc/mounts | grep -vxF "$before" | sed 's/^/LEFT mount /'
exit $code
"""


def test_proves_that_a_guest_reaches_its_gate_only() -> None:
    """Every part of the host is judged, a machine boots, its root reaches nothing, and nothing is left behind."""
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    doctor = shlex.join([sys.executable, "manage.py", "doctor", "--isolation"])
    done = subprocess.run(  # noqa: TID251
        ["unshare", "--mount", "sh", "-c", ALONE.replace("{doctor}", doctor)],
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
    assert [line for line in done.stdout.splitlines() if line.startswith("LEFT ")] == []
    assert processes(Path("/mnt/atoll-doctor-"), "") == []
    assert [root for root in (DEFAULT_CACHE / ".roots").iterdir() if "/mnt/" in root.read_text()] == []
