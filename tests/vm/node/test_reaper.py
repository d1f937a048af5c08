"""A daemonised child that dies is collected; a child that somebody waits for is left to them."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from vm.host.run import run

REAPING = """
import os, subprocess, sys, time
from vm.node.reaper import become_subreaper, reap_daemons
become_subreaper()
program = sys.argv[1]
# as QEMU daemonises: a session of its own, and a parent that ends
subprocess.run(["sh", "-c", f"setsid {program} 0.2 & exit 0"], check=True)
waited_for = subprocess.Popen([program, "0"])
time.sleep(0.7)
reaped = reap_daemons("qemu-system")
assert waited_for.pid not in reaped, "a child of our session was taken away"
assert waited_for.wait() == 0
assert len(reaped) == 1, reaped
assert not os.path.exists(f"/proc/{reaped[0]}"), "still a zombie"
assert reap_daemons("qemu-system") == []
"""


def test_only_daemons_are_reaped(tmp_path: Path) -> None:
    """Seen on a program of QEMU's name that left our session, beside one of the same name that did not."""
    program = tmp_path / "qemu-system-x"
    shutil.copy("/bin/sleep", program)
    run([sys.executable, "-c", REAPING, program], cwd=Path(__file__).parents[3])


def test_an_orphan_survives_us_and_is_not_lost(tmp_path: Path) -> None:
    """When the reaper dies, the next subreaper up has the daemon: it runs on, and can be reaped there."""
    script = (
        "import subprocess, sys\n"
        "from vm.node.reaper import become_subreaper\n"
        "become_subreaper()\n"
        "inner = 'import subprocess; from vm.node.reaper import become_subreaper; become_subreaper();'\n"
        'inner += \'subprocess.run(["sh", "-c", "setsid sleep 30 >/dev/null & echo $!"])\'\n'
        "said = subprocess.run([sys.executable, '-c', inner], stdout=subprocess.PIPE, text=True)\n"
        "pid = int(said.stdout)\n"
        "import os, signal\n"
        "parent = int(open(f'/proc/{pid}/stat').read().rsplit(')', 1)[1].split()[1])\n"
        "assert parent == os.getpid(), (parent, os.getpid())\n"
        "os.kill(pid, signal.SIGKILL)\n"
        "assert os.waitpid(pid, 0)[0] == pid\n"
    )
    began = time.monotonic()
    run([sys.executable, "-c", script], cwd=Path(__file__).parents[3])
    assert time.monotonic() - began < 20
