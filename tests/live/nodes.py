"""Real nodes for tests: a process of their own on a data directory of their own, and commands run in their guests."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.live.baked import Shape, seed
from vm.api import Identity, MachineInfo, MachineSpec, MachineState, Node, Secret
from vm.errors import StreamReset
from vm.guest.calls import GuestCall, call
from vm.host.provision import Users, provision
from vm.image.build import DEFAULT_CACHE, build
from vm.node.client import NodeClient

CHECKOUT = Path(__file__).resolve().parents[2]
IMAGES = DEFAULT_CACHE
BOOT = 120.0  # seconds a test waits for a boot: the machine that tests has other things to do


SMALL: Shape = (512, 1, 10)
"""What `spec` makes unless it is told otherwise."""


class NodeProcess:
    """A node on its own data directory, which may be killed and started again.

    Its machines boot, unless `clones` is among the settings; templates of the shapes in `seeded` are there already.
    """

    def __init__(self, data: Path | None = None, *, seeded: Sequence[Shape] = (), **settings: Any) -> None:
        self.data = data or Path(tempfile.mkdtemp(prefix="atoll-n-", dir="/tmp"))
        self.data.chmod(0o755)
        for shape in seeded:
            seed(self.data, shape)
        provision(data=self.data, image_cache=IMAGES, users=Users())
        self.settings = {"image_cache": str(IMAGES), "image": build(IMAGES).name, "clones": False, **settings}
        self.process: subprocess.Popen[bytes] | None = None
        self.log = self.data / "node.log"

    @classmethod
    def cloning(cls, data: Path | None = None, **settings: Any) -> NodeProcess:
        """One whose machines of the usual shape are cloned, one at a time as they are asked for: none takes a boot."""
        return cls(data, seeded=[SMALL], clones=True, warm=None, **settings)

    @property
    def client(self) -> NodeClient:
        return NodeClient(self.data / "run" / "node.sock", self.data / "keys" / "node.key")

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.live.node_main", str(self.data), repr(self.settings)],
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + 60
        while True:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(str(self.data / "run" / "node.sock"))
                    return
                except OSError:
                    pass
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the node did not start:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """kill -9, as when it is killed for want of memory."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def stop(self) -> None:
        """End it in order; machines run on. Repeatable."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=30)
            self.process = None

    def close(self) -> None:
        """Stop every machine, then the node, and remove what they left on disk."""
        if self.process is None:
            self.start()
        asyncio.run(self._stop_all())
        self.stop()
        shutil.rmtree(self.data)

    async def _stop_all(self) -> None:
        client = self.client
        for info in await client.machine_list():
            await client.machine_stop(info.machine)
            await client.machine_forget(info.machine)

    async def holdings(self) -> tuple[set[str], set[str]]:
        """Its machines and its volumes, snapshots of them included, by id."""
        client = self.client
        machines = {info.machine for info in await client.machine_list()}
        return machines, {volume.volume for volume in await client.volume_list()}

    async def back_to(self, machines: set[str], volumes: set[str]) -> None:
        """End and remove every other machine and volume, whatever the test that made them came to."""
        client = self.client
        now = await self.holdings()
        for machine in now[0] - machines:
            await client.machine_stop(machine)
            await client.machine_forget(machine)
        for volume in now[1] - volumes:
            await client.volume_remove(volume)

    # -- what it leaves on the host

    @property
    def tag(self) -> str:
        """What the names of its domains, namespaces and taps carry."""
        import json

        return str(json.loads((self.data / "machines" / "node.json").read_text())["tag"])

    def qemu_pids(self) -> list[int]:
        """Its machines' processes, zombies included."""
        pids = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    line = (entry / "cmdline").read_bytes()
                    stat = (entry / "stat").read_text()
                except OSError:
                    continue
                if f"guest=atoll-{self.tag}-".encode() in line:
                    pids.append(int(entry.name))
                elif "(qemu-system" in stat and stat.rsplit(")", 1)[1].split()[0] == "Z":
                    parent = int(stat.rsplit(")", 1)[1].split()[1])
                    if self.process is not None and parent == self.process.pid:
                        pids.append(int(entry.name))
        return pids

    def leftovers(self) -> list[str]:
        """Everything of its machines that is on the host now, but for disks and records."""
        return [
            *(f"process {pid}" for pid in self.qemu_pids()),
            *(f"namespace {path.name}" for path in Path("/run/netns").glob(f"atoll-{self.tag}-*")),
            *(f"tap {path.name}" for path in Path("/sys/class/net").glob(f"t{self.tag}*")),
            *(f"socket {path.name}" for path in (self.data / "run" / "agents").iterdir()),
        ]


def spec(
    machine: str,
    *,
    memory_mib: int = 512,
    vcpus: int = 1,
    hostname: str = "box",
    env: dict[str, str] | None = None,
) -> MachineSpec:
    return MachineSpec(
        machine=machine, memory_mib=memory_mib, vcpus=vcpus, disk_gib=10, identity=Identity(hostname, env or {})
    )


async def boot(node: Node, machine: str, *, told: Sequence[Secret] = (), **details: Any) -> MachineInfo:
    """Start a machine that has been told these secrets, and wait until it is ready."""
    await node.machine_start(spec(machine, **details), secrets=told)
    info = await node.machine_wait(machine, timeout=BOOT)
    assert info.state is MachineState.READY, info
    return info


async def execute(node: Node, machine: str, *argv: str, timeout: float = 60.0) -> tuple[int, bytes]:
    """Run a command in the guest; its exit code and its output."""
    async with asyncio.timeout(timeout):
        params = {"command": argv[0], "args": list(argv[1:]), "stdin": "null", "stdout": "piped", "stderr": "null"}
        started = await call(await node.stream_open(machine), "spawn", params)
        pid = started["ok"]["pid"]
        output = bytearray()
        async with await GuestCall.begin(await node.stream_open(machine), "process.stdout", {"pid": pid}) as reading:
            assert "ok" in await reading.reply()
            while data := await reading.read():
                output += data
        ended = await call(await node.stream_open(machine), "processWait", {"pid": pid})
        return int(ended["ok"]["code"]), bytes(output)


async def start_command(node: Node, machine: str, *argv: str) -> None:
    """Start a command in the guest and leave it alone."""
    params = {"command": argv[0], "args": list(argv[1:]), "stdin": "null", "stdout": "null", "stderr": "null"}
    with suppress(StreamReset):  # it may end the machine before the answer
        reply = await call(await node.stream_open(machine), "spawn", params)
        assert "ok" in reply, reply


def uid(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


def children_of(pid: int) -> list[int]:
    return [
        int(child)
        for task in os.listdir(f"/proc/{pid}/task")
        for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()
    ]
