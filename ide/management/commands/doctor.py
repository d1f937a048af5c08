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
from ide.installation import CHECKOUT, health
from sandboxes.services.host_data import REMEDY, TROUBLE
from vm.errors import VmError
from vm.host import preflight
from vm.host.install import INTERCEPTOR
from vm.host.preflight import Finding, Level
from vm.host.provision import Users, provision, unregister
from vm.image.hashes import image_path
from vm.net.addresses import own_addresses, own_addresses6
from vm.node.client import NodeClient
from vm.node.hooks import hooks_checked
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
        findings += _data()
        findings += hooks_checked(
            env().egress_hooks, env().egress_hooks_path, user=users.proxy, python=INTERCEPTOR / "bin" / "python"
        )
        self._show(findings)
        if image is None:
            self._show(
                [Finding("isolation", Level.WARN, "not tried: there is no guest image yet", "make up builds it")]
            )
        elif any(finding.level is Level.FAIL for finding in findings):
            self._show([Finding("isolation", Level.WARN, "not tried: this host cannot run machines", "see above")])
        else:
            self.stdout.write("booting two machines that try to get out ...")
            proof = asyncio.run(_proof(users, whole=options["isolation"]))
            self._show(proof)
            findings += proof
        if any(finding.level is Level.FAIL for finding in findings):
            sys.exit(1)

    def _show(self, findings: list[Finding]) -> None:
        for finding in findings:
            self.stdout.write("\n".join(preflight.lines(finding)))


def _data() -> list[Finding]:
    """Whether the node's data directory is the one that the database is about, by the web process that runs here."""
    # The database is not opened: side files of it would belong to root
    said = health(env())
    if said is None:
        return []
    trouble = next((line.removeprefix(TROUBLE) for line in said.splitlines() if line.startswith(TROUBLE)), "")
    if trouble:
        return [Finding("data directory", Level.WARN, trouble, REMEDY)]
    return [Finding("data directory", Level.OK, "the one that the database is about")]


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
    with _place() as data:
        async with baits() as bait:
            with _scratch_node(users, bait, data) as node:
                proof = await isolated(node, bait, addresses=own_addresses(), addresses6=own_addresses6(), whole=whole)
        if any(finding.level is Level.FAIL for finding in proof):
            proof.append(_log_kept(data / "logs" / "node.log"))
        return proof


@contextmanager
def _place() -> Iterator[Path]:
    """A data root for as long as it takes."""
    with tempfile.TemporaryDirectory(prefix="atoll-doctor-") as place:
        Path(place).chmod(0o755)
        data = Path(place) / "data"
        try:
            yield data
        finally:
            unregister(data, env().image_cache)


def _log_kept(log: Path) -> Finding:
    handle, kept = tempfile.mkstemp(prefix="atoll-doctor-", suffix=".log")
    with os.fdopen(handle, "wb") as copy:
        copy.write(log.read_bytes())
    return Finding("log", Level.WARN, "something failed", f"the log of the machines' node is kept: {kept}")


@contextmanager
def _scratch_node(users: Users, bait: Bait, data: Path) -> Iterator[NodeClient]:
    """A node on that data root: the running one's reconciler would stop a machine that no row names."""
    provision(data=data, image_cache=env().image_cache, users=users)
    with (data / "logs" / "node.log").open("wb") as output:
        node = subprocess.Popen(
            [sys.executable, "manage.py", "node"],
            cwd=CHECKOUT,
            env={
                **os.environ,
                "ATOLL_DATA": str(data),
                "ATOLL_CLONES": "false",  # its pool would bake a template beside the trial
                "ATOLL_EGRESS_DNS": f"127.0.0.1:{bait.resolver}",
                "ATOLL_EGRESS_INTERNAL_ALLOW": f"{CONTROL}:{bait.control}",
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        until = time.monotonic() + PATIENCE
        while not (data / "run" / "node.sock").exists() and node.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        yield NodeClient(data / "run" / "node.sock", data / "keys" / "node.key")
    finally:
        node.terminate()
        node.wait()
