"""Becoming the service user, with real mounts and a real unprivileged user."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="changing users needs root")
CHECKOUT = Path(__file__).resolve().parents[3]

LOOK = """
import os, json
print(json.dumps({"uid": os.getuid(), "closed": os.listdir(CLOSED), "secret": os.path.exists(CLOSED + "/secret"),
    "root": open("/proc/self/status").read().split("NoNewPrivs:")[1].split()[0]}))
"""


@pytest.fixture
def closed_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout below a directory that only root may enter, with a file beside it that is nobody else's business."""
    closed = tmp_path_factory.mktemp("closed")
    closed.chmod(0o700)
    (closed / "secret").write_text("x")
    shutil.copytree(CHECKOUT / "vm", closed / "checkout" / "vm", ignore=shutil.ignore_patterns("__pycache__"))
    return closed / "checkout"


def confined(checkout: Path, program: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "vm.host.confine", "nobody", "--", sys.executable, "-c", program]
    return subprocess.run(argv, cwd=checkout, capture_output=True, text=True, check=False)  # noqa: TID251 - the test is the runner


def test_sees_the_application_and_nothing_beside_it(closed_checkout: Path) -> None:
    """The service user reads the checkout below a closed directory, and not the directory's other files."""
    closed = closed_checkout.parent
    done = confined(closed_checkout, LOOK.replace("CLOSED", repr(str(closed))))
    assert done.stderr == ""
    assert '"closed": ["checkout"]' in done.stdout
    assert '"secret": false' in done.stdout
    assert '"uid": 0' not in done.stdout
    assert '"root": "1"' in done.stdout


def test_cannot_write_the_application(closed_checkout: Path) -> None:
    """What the service user sees of a closed checkout is read-only."""
    done = confined(closed_checkout, f"open({str(closed_checkout / 'vm' / 'x')!r}, 'w')")
    assert "Read-only file system" in done.stderr or "Permission denied" in done.stderr


def test_an_unreadable_checkout_is_one_clear_line(closed_checkout: Path) -> None:
    """A checkout made under umask 077 cannot be shown to anyone: the message says what to do."""
    closed_checkout.chmod(0o700)
    done = confined(closed_checkout, "")
    assert done.returncode != 0
    assert f"chmod -R go+rX {closed_checkout}" in done.stderr


def test_a_process_with_secrets_leaves_no_core() -> None:
    """Neither a core file is written nor may anybody else of its user read its memory; an ordinary one could be."""
    program = (
        "import ctypes, resource; from vm.host.confine import undumpable; libc = ctypes.CDLL(None);"
        "said = lambda: (libc.prctl(3, 0, 0, 0, 0), resource.getrlimit(resource.RLIMIT_CORE)[0]);"
        "resource.setrlimit(resource.RLIMIT_CORE, (4096, 4096)); print(said()); undumpable(); print(said())"
    )
    done = subprocess.run(  # noqa: TID251
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["(1, 4096)", "(0, 0)"]


BIND = """
import errno, socket
from vm.host.confine import set_capabilities
def bind(port):
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.errno != errno.EACCES
        return True
held = open("/proc/self/status").read().split("CapPrm:")[1].split()[0]
print(bind(81), int(held, 16), end=" ")
set_capabilities(0)
print(bind(81))
"""


@pytest.mark.parametrize(("options", "said"), [([], "False 0 False"), (["--low-ports"], "True 1024 False")])
def test_low_ports(closed_checkout: Path, options: list[str], said: str) -> None:
    """One capability of root's is kept where that is asked for, and no other; and it is given up for good."""
    argv = [sys.executable, "-m", "vm.host.confine", "nobody", *options, "--", sys.executable, "-c", BIND]
    done = subprocess.run(argv, cwd=closed_checkout, capture_output=True, text=True, check=False)  # noqa: TID251
    assert (done.stdout.strip(), done.stderr) == (said, "")
