"""The machines of an installation that is measured: its node, and their processes."""

from __future__ import annotations

import json
from pathlib import Path

from tests.installation import Installation, processes
from vm.node.client import NodeClient


def node_of(installation: Installation) -> NodeClient:
    """The installation's node."""
    return NodeClient(installation.data / "run" / "node.sock", installation.data / "keys" / "node.key")


def machine_pids(installation: Installation, machines: set[str]) -> list[int]:
    """The QEMUs of these machines; clones that wait in the pool are none of them."""
    records = [json.loads((installation.data / "machines" / name / "machine.json").read_text()) for name in machines]
    bodies = [record["body"].encode() for record in records]
    pids = processes(installation.data, "qemu-system")
    return [pid for pid in pids if any(body in Path(f"/proc/{pid}/cmdline").read_bytes() for body in bodies)]
