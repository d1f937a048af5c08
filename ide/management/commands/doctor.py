"""`manage.py doctor`: is this host fit to run machines, and if not, what to do."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from ide.env import env
from ide.installation import CHECKOUT
from vm.errors import VmError
from vm.host import preflight
from vm.host.preflight import Finding, Level
from vm.host.provision import Users, provision
from vm.image.build import image_path
from vm.net.addresses import own_addresses
from vm.node.client import NodeClient
from vm.node.isolation import CONTROL, Bait, baits, isolated

PATIENCE = 60.0


class Command(BaseCommand):
    """Print one finding after the other; exit code 1 where machines cannot run, or are not isolated."""

    help = "Check this host part by part, then boot machines that try to get out, and say how each way ended."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """One option."""
        parser.add_argument("--isolation", action="store_true", help="report every single attempt to get out")

    def handle(self, *args: Any, **options: Any) -> None:
        """Look, and say what each finding means."""
        image = image_path(env().image_cache)
        users = Users()
        findings = preflight.host(
            data=env().data,
            users=(users.service, users.machine, users.proxy),
            kernel=image / "vmlinux" if image is not None else None,
        )
        findings += asyncio.run(_interceptors())
        self._show(findings)
        if image is not None and not any(finding.level is Level.FAIL for finding in findings):
            self.stdout.write("booting two machines that try to get out ...")
            proof = asyncio.run(_proof(users, whole=options["isolation"]))
            self._show(proof)
            findings += proof
        if any(finding.level is Level.FAIL for finding in findings):
            sys.exit(1)

    def _show(self, findings: list[Finding]) -> None:
        for finding in findings:
            self.stdout.write("\n".join(preflight.lines(finding)))


async def _interceptors() -> list[Finding]:
    """Whether those of the node that runs here do; nothing where none does."""
    try:
        host = await NodeClient(env().node_socket, env().node_key).host_info()
    except VmError:
        return []
    seen = f"{host.interceptors} of {host.interceptors_wanted} run"
    if host.interceptors >= host.interceptors_wanted:
        return [Finding("interceptors", Level.OK, seen)]
    why = f"{env().data / 'logs' / 'node.log'} says why; each is started again after a moment"
    return [Finding("interceptors", Level.WARN, f"{seen}: hosts with secrets may not be reached", why)]


async def _proof(users: Users, *, whole: bool) -> list[Finding]:
    async with baits() as bait:
        with _scratch_node(users, bait) as node:
            return await isolated(node, bait, addresses=own_addresses(), whole=whole)


@contextmanager
def _scratch_node(users: Users, bait: Bait) -> Iterator[NodeClient]:
    """A node on a data root of its own: the running one's reconciler would stop a machine that no row names."""
    with tempfile.TemporaryDirectory(prefix="atoll-doctor-") as place:
        Path(place).chmod(0o755)
        data = Path(place) / "data"
        provision(data=data, image_cache=env().image_cache, users=users)
        with (data / "logs" / "node.log").open("wb") as log:
            node = subprocess.Popen(
                [sys.executable, "manage.py", "node"],
                cwd=CHECKOUT,
                env={
                    **os.environ,
                    "ATOLL_DATA": str(data),
                    "ATOLL_EGRESS_DNS": f"127.0.0.1:{bait.resolver}",
                    "ATOLL_EGRESS_INTERNAL_ALLOW": f"{CONTROL}:{bait.control}",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            until = time.monotonic() + PATIENCE
            while not (data / "run" / "node.sock").exists() and node.poll() is None and time.monotonic() < until:
                time.sleep(0.1)
            yield NodeClient(data / "run" / "node.sock", data / "keys" / "node.key")
        finally:
            node.terminate()
            node.wait()
