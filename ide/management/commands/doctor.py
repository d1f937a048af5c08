"""`manage.py doctor`: is this host fit to run machines, and if not, what to do."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand

from ide.env import env
from ide.installation import CHECKOUT
from vm.errors import VmError
from vm.host import preflight
from vm.host.preflight import Finding, Level
from vm.host.provision import Users, provision
from vm.image.build import image_path
from vm.node.client import NodeClient
from vm.node.isolation import Target, only_the_gate

PATIENCE = 60.0


class Command(BaseCommand):
    """Print one finding after the other; exit code 1 where machines cannot run, or are not isolated."""

    help = "Check this host part by part, then boot a machine and prove that it reaches its gate and nothing else."
    requires_system_checks: list[str] = []

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
            self.stdout.write("booting a machine that tries to get out ...")
            with _scratch_node(users) as node:
                proof = asyncio.run(only_the_gate(node, targets=list(_targets())))
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


@contextmanager
def _scratch_node(users: Users) -> Iterator[NodeClient]:
    """A node on a data root of its own: the running one's reconciler would stop a machine that no row names."""
    with tempfile.TemporaryDirectory(prefix="atoll-doctor-") as place:
        Path(place).chmod(0o755)
        data = Path(place) / "data"
        provision(data=data, image_cache=env().image_cache, users=users)
        with (data / "logs" / "node.log").open("wb") as log:
            node = subprocess.Popen(
                [sys.executable, "manage.py", "node"],
                cwd=CHECKOUT,
                env={**os.environ, "ATOLL_DATA": str(data)},
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


def _targets() -> Iterator[Target]:
    """Where a guest must not get even if it may reach all public hosts: this host's own addresses, metadata, inside."""
    yield Target("169.254.169.254", 80)
    yield Target("10.0.0.1", 22)
    yield Target("192.168.0.1", 80)
    for _family, _kind, _proto, _name, address in socket.getaddrinfo(socket.gethostname(), 22, family=socket.AF_INET):
        if not str(address[0]).startswith("127."):  # a guest's own loopback is its own business
            yield Target(str(address[0]), 22)
            yield Target(str(address[0]))
