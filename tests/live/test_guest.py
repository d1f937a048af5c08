"""What a newcomer finds in a machine: the recipe's programs, a user with his rights, and a system that behaves."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator

import pytest

from tests.live.nodes import NodeProcess, boot, execute
from vm.api import Node

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def process() -> Iterator[NodeProcess]:
    """A node whose machines boot."""
    made = NodeProcess()
    made.start()
    yield made
    made.close()


@pytest.fixture(scope="module")
def machine(process: NodeProcess) -> str:
    """One machine for all: nothing here harms it."""
    name = secrets.token_hex(16)
    asyncio.run(_boot(process, name))
    return name


async def _boot(process: NodeProcess, machine: str) -> None:
    await boot(process.client, machine, hostname="box")


@pytest.fixture
def sh(process: NodeProcess, machine: str) -> Shell:
    return Shell(process.client, machine)


class Shell:
    """Runs lines in the machine as its user."""

    def __init__(self, node: Node, machine: str) -> None:
        self._node, self._machine = node, machine

    async def __call__(self, line: str) -> str:
        """What it prints, errors with it; it must succeed."""
        code, output = await execute(self._node, self._machine, "bash", "-c", f"exec 2>&1; {line}")
        assert code == 0, output
        return output.decode().strip()


async def test_programs(sh: Shell) -> None:
    """Debian 13 with what the recipe promises, each of which runs; no compiler."""
    assert 'VERSION_ID="13"' in await sh("cat /etc/os-release")
    for program in ("python3", "node", "npm", "deno", "git", "curl", "jq", "sudo", "bash"):
        assert await sh(f"{program} --version"), program
    assert await sh("for name in gcc cc g++ clang make; do command -v $name; done; true") == ""


async def test_the_user(sh: Shell) -> None:
    """uid 1000, at home in /home/app, which /app leads to; root without a password and without a word."""
    assert await sh("id -un; id -u; pwd; echo $HOME; readlink /app") == "app\n1000\n/home/app\n/home/app\n/home/app"
    assert await sh("echo x > /app/there && cat /home/app/there") == "x"
    assert await sh("sudo -n id -u") == "0"


async def test_sudo_is_silent_under_any_name(sh: Shell) -> None:
    """A host name that nobody resolves would make sudo complain, after a time-out."""
    assert await sh("hostname; sudo -n hostname") == "box\nbox"
    assert await sh("sudo -n hostname other && sudo -n true && sudo -n hostname box") == ""


async def test_texts_are_utf_8(sh: Shell) -> None:
    assert await sh("python3 -c 'import sys; print(sys.stdout.encoding, \"größe 漢字\")'") == "utf-8 größe 漢字"
    assert await sh("sudo -n python3 -c 'import sys; print(sys.stdout.encoding)'") == "utf-8"
    assert await sh("locale charmap") == "UTF-8"


async def test_shared_memory_and_terminals(sh: Shell) -> None:
    """/dev/shm takes what programs put there, and pseudo-terminals can be opened."""
    assert await sh("python3 -c 'from multiprocessing import Semaphore; Semaphore(1); print(1)'") == "1"
    assert await sh("stat -c %a /dev/shm") == "1777"
    assert await sh("python3 -c 'import os, pty; print(os.ttyname(pty.openpty()[1])[:9])'") == "/dev/pts/"


async def test_orphans_are_reaped(sh: Shell) -> None:
    """A process whose parent is gone leaves no zombie."""
    await sh("for i in $(seq 20); do (setsid sh -c 'sleep 0.2' &) ; done; sleep 1")
    assert await sh("ps -eo stat= | grep -c ^Z || true") == "0"


async def test_installed_services_are_not_started(sh: Shell) -> None:
    """Packages ask policy-rc.d, which refuses: there is no init system."""
    assert await sh("sudo -n /usr/sbin/policy-rc.d ssh start; echo $?") == "101"


async def test_the_disk_grows(sh: Shell) -> None:
    """The root file system has the size that a machine's disk can grow to."""
    gib = int(await sh("df --output=size -B1 / | tail -1")) / 2**30
    assert 9 < gib <= 10


async def test_no_console_to_write_to(sh: Shell) -> None:
    """What a guest says on a console would fill a log of the host."""
    assert await sh("sudo -n sh -c 'echo x > /dev/ttyS0' >/dev/null 2>&1 && echo written; true") == ""
