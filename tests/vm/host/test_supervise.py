"""The supervisor, run as a real process over real children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
PROGRAM = """
import os, sys
from pathlib import Path
from vm.host.supervise import NotReady, Service, Supervisor

here = Path(sys.argv[1])

def service(name, code, grace=2.0, patience=10.0, beside=False):
    ready = here / f"{name}.ready"
    argv = (sys.executable, "-c", code, str(ready))
    return Service(name, argv, ready.exists, patience=patience, grace=grace, beside=beside)

READY = "import sys, pathlib, os; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); "
services = [eval(text) for text in sys.argv[2:]]
supervisor = Supervisor(
    services, cwd=here, logs=here, environment=dict(os.environ), say=lambda line: print(line, flush=True)
)
try:
    supervisor.start()
    print("stopping:", supervisor.run(), flush=True)
except NotReady as error:
    print("not ready:", error, flush=True)
finally:
    supervisor.stop()
"""

STAYS = """service("{name}", READY + "import time; time.sleep(600)")"""


class Run:
    """One supervisor and what it has said."""

    def __init__(self, here: Path, services: tuple[str, ...]) -> None:
        self.here = here
        self.output = here / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(PROGRAM), str(here), *services],
                cwd=CHECKOUT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.02)

    def said(self, words: str) -> bool:
        return words in self.output.read_text()

    def pid(self, name: str) -> int:
        return int((self.here / f"{name}.ready").read_text())


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start(*services: str) -> Run:
        runs.append(Run(tmp_path, services))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.poll() is None:
            run.process.terminate()
        run.process.wait(timeout=30)


def test_starts_in_order_and_stops_in_reverse(supervise: Callable[..., Run]) -> None:
    """The second process starts when the first is ready, and is stopped before it."""
    run = supervise(STAYS.format(name="one"), STAYS.format(name="two"))
    run.until(lambda: run.said("two is ready"))
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(timeout=30) == 0
    lines = [line.split(" (")[0] for line in run.output.read_text().splitlines()]
    assert lines == ["one is ready", "two is ready", "stopping: Ctrl-C", "two stopped", "one stopped"]


def test_what_needs_nothing_is_started_beside(supervise: Callable[..., Run]) -> None:
    """The first one waits for the second, which could not be if they were started one after the other."""
    waits = (
        "import sys, pathlib, time; here = pathlib.Path(sys.argv[1]).parent\n"
        "while not (here / 'two.ready').exists(): time.sleep(0.02)\n"
    )
    run = supervise(
        f'service("one", {waits!r} + READY + "time.sleep(600)")',
        'service("two", READY + "import time; time.sleep(600)", beside=True)',
    )
    run.until(lambda: run.said("two is ready"))
    lines = [line.split(" (")[0] for line in run.output.read_text().splitlines()]
    assert lines == ["one is ready", "two is ready"]


def test_one_beside_that_fails_is_told(supervise: Callable[..., Run]) -> None:
    """It is not taken for one that has yet to be started."""
    run = supervise(
        'service("one", "import time; time.sleep(1);" + READY + "time.sleep(600)")',
        'service("two", "raise SystemExit(3)", beside=True)',
    )
    run.until(lambda: run.said("not ready: two ended while starting"))


def test_restarts_a_killed_child_and_says_so(supervise: Callable[..., Run]) -> None:
    """kill -9 of a process brings a new one, announced with the signal and the log's place."""
    run = supervise(STAYS.format(name="one"))
    run.until(lambda: run.said("one is ready"))
    first = run.pid("one")
    os.kill(first, signal.SIGKILL)
    run.until(lambda: run.said("one is back") and run.pid("one") != first)
    assert run.said("one ended unexpectedly (killed by SIGKILL); starting it again in 1 s")


def test_a_process_that_ignores_sigterm_is_killed_after_its_grace(supervise: Callable[..., Run]) -> None:
    """Stopping ends, whatever a process does with its signals."""
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    run = supervise(f'service("one", "{deaf}" + READY + "import time; time.sleep(600)", grace=0.5)')
    run.until(lambda: run.said("one is ready"))
    run.process.terminate()
    assert run.process.wait(timeout=30) == 0
    assert run.said("stopping: make down")
    assert run.said("one was killed")


def test_a_first_start_that_fails_says_the_last_words(supervise: Callable[..., Run]) -> None:
    """A process that ends while starting is reported with its exit code and what it said last; nothing is left."""
    run = supervise(STAYS.format(name="one"), """service("two", "raise SystemExit('no such table')")""")
    run.process.wait(timeout=30)
    assert run.said("not ready: two ended while starting (exit code 1): no such table")
    with pytest.raises(ProcessLookupError):
        os.kill(run.pid("one"), 0)


def test_reaps_orphans(supervise: Callable[..., Run]) -> None:
    """A daemonised grandchild (as QEMU is) leaves no zombie when it ends."""
    daemon = "if os.fork() == 0: os.setsid(); open(sys.argv[1] + '.pid', 'w').write(str(os.getpid())); os._exit(0)"
    run = supervise(f'service("one", READY + "\\n{daemon}\\nimport time; time.sleep(600)")')
    orphan = run.here / "one.ready.pid"
    run.until(lambda: orphan.exists() and orphan.read_text() != "")
    # its parent never waits: dead and reaped only if the subreaper is given it, so end the parent
    os.kill(run.pid("one"), signal.SIGKILL)
    run.until(lambda: not Path(f"/proc/{orphan.read_text()}").exists())


def test_children_end_with_a_killed_supervisor(supervise: Callable[..., Run]) -> None:
    """kill -9 of the supervisor leaves no process that would hold the port or the lock."""
    run = supervise(STAYS.format(name="one"))
    run.until(lambda: run.said("one is ready"))
    run.process.kill()
    child = Path(f"/proc/{run.pid('one')}/stat")
    # in a container whose first process reaps late it may stay a zombie, which holds nothing
    run.until(lambda: not child.exists() or child.read_text().split(") ")[1][0] == "Z")
