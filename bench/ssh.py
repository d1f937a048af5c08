"""SSH through the gateway: commands beside the SDK's, copies by scp beside the same bytes through the channel alone."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deno_sandbox import DenoDeploy

from bench.channel import SIZE, _read, _write
from bench.report import Number, median
from tests.installation import Installation
from vm.node.client import NodeClient

RUNS = 5
EXECS = 20  # of each run
MEMORY = 1280


def ssh(installation: Installation) -> list[Number]:
    """Seconds of `true` over a connection that is open, and MB/s of scp out of and into memory of the guest."""
    with (
        tempfile.TemporaryDirectory(prefix="atoll-bench-") as work,
        DenoDeploy().sandbox.create(memory_mb=MEMORY) as sandbox,
    ):
        told = sandbox.expose_ssh()
        config = Path(work) / "config"
        config.write_text(
            f"Host box\n HostName {told['hostname']}\n Port {told['port']}\n User {told['username']}\n"
            f" UserKnownHostsFile {work}/known\n StrictHostKeyChecking accept-new\n LogLevel ERROR\n"
            f" IdentityFile none\n ControlPath {work}/master\n"
        )
        run = ["-F", str(config)]
        master = subprocess.Popen(["ssh", *run, "-M", "-N", "box"])
        try:
            while not (Path(work) / "master").exists():
                time.sleep(0.05)
            return [*_execs(sandbox, run), *_copies(installation, Path(work), run)]
        finally:
            master.terminate()
            master.wait()


def _execs(sandbox: Any, run: list[str]) -> list[Number]:
    over_ssh, over_sdk, anew = [], [], []
    for _ in range(RUNS):
        over_ssh.append(median(_timed(lambda: _call("ssh", *run, "box", "true"), EXECS)))
        over_sdk.append(median(_timed(lambda: sandbox.spawn("true", stdout="null", stderr="null").wait(), EXECS)))
        anew.append(median(_timed(lambda: _call("ssh", *run, "-S", "none", "box", "true"), 3)))
    return [
        Number(
            "SSH exec, connection open",
            median(over_ssh) * 1000,
            "ms",
            median(over_sdk) * 1000,
            "the SDK's exec",
            at_most=2,
        ),
        Number("SSH exec, new connection", median(anew) * 1000, "ms"),
    ]


def _copies(installation: Installation, work: Path, run: list[str]) -> list[Number]:
    node = NodeClient(installation.data / "run" / "node.sock", installation.data / "keys" / "node.key")
    machine = next(info.machine for info in asyncio.run(node.machine_list()) if info.state == "ready")
    here = work / "block"
    here.write_bytes(bytes(SIZE))
    copied: dict[str, list[float]] = {"out": [], "in": []}
    raw: dict[str, list[float]] = {"out": [], "in": []}
    # What is read has to be there first
    asyncio.run(_write(node, machine, "/dev/shm/bench"))
    scp = ["scp", "-q", *run]
    for _ in range(RUNS):
        raw["in"].append(asyncio.run(_write(node, machine, "/dev/shm/bench")))
        copied["in"] += _timed(lambda: _call(*scp, str(here), "box:/dev/shm/copied"), 1)
        raw["out"].append(asyncio.run(_read(node, machine, "/dev/shm/bench")))
        copied["out"] += _timed(lambda: _call(*scp, "box:/dev/shm/bench", str(here)), 1)
    return [
        _promised("scp out of the guest", median(copied["out"]), median(raw["out"]), absolute=40),
        _promised("scp into the guest", median(copied["in"]), median(raw["in"]), absolute=12),
    ]


def _promised(name: str, seconds: float, alone: float, *, absolute: float) -> Number:
    """So many MB/s, or where this host does not get there half of what the channel does."""
    value, reference = SIZE / 1e6 / seconds, SIZE / 1e6 / alone
    if value >= absolute:
        return Number(name, value, "MB/s", at_least=absolute, note=f"the channel alone: {reference:.0f} MB/s")
    return Number(name, value, "MB/s", reference, "the channel alone", at_least=0.5, note=f"less than {absolute} MB/s")


def _call(*argv: str) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)  # noqa: TID251


def _timed(act: Callable[[], object], runs: int) -> list[float]:
    seconds = []
    for _ in range(runs):
        began = time.monotonic()
        act()
        seconds.append(time.monotonic() - began)
    return seconds
