"""What idle machines cost the host, with the node running and without it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

from deno_sandbox import DenoDeploy

from bench.machines import machine_pids, node_of
from bench.report import Number, median
from tests.installation import Installation, processes
from vm.api import MachineState
from vm.host.supervise import BACKOFF

MACHINES = 3
RUNS = 5
SECONDS = 4.0  # all runs fit into the half minute a supervisor waits at most
_TICKS = os.sysconf("SC_CLK_TCK")


def _cpu(pids: list[int]) -> float:
    """CPU seconds these processes have used."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def _share(pids: list[int]) -> float:
    """Percent of a core that each used: the median of RUNS times SECONDS."""
    shares = []
    for _ in range(RUNS):
        before = _cpu(pids)
        time.sleep(SECONDS)
        shares.append((_cpu(pids) - before) / SECONDS / len(pids) * 100)
    return median(shares)


def _take_the_node_away(installation: Installation) -> None:
    """Kill the node as often as makes its supervisor wait half a minute before the next start."""
    for _ in BACKOFF:
        while not (pids := processes(installation.data, "manage.py node")):
            time.sleep(0.1)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)
    time.sleep(1)


def idle(installation: Installation) -> list[Number]:
    """Percent of a core for each idle machine, with its node and without."""
    opened = [DenoDeploy().sandbox.create(timeout="10m").__enter__() for _ in range(MACHINES)]
    time.sleep(5)
    listed = asyncio.run(node_of(installation).machine_list())
    qemus = machine_pids(installation, {info.machine for info in listed if info.state is MachineState.READY})
    running = _share(qemus)
    _take_the_node_away(installation)
    alone = _share(qemus)
    while not processes(installation.data, "manage.py node"):
        time.sleep(0.5)
    time.sleep(10)
    for sandbox in opened:
        sandbox.kill()
    return [
        Number("idle machine", running, "% of a core", at_most=1),
        Number("idle machine, node down", alone, "% of a core", at_most=1),
    ]
