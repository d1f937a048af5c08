"""Interceptors are kept running, share the work, and none goes by orders of old."""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.vm.egress.interceptor.scene import VALUE, Scene, secret
from vm.node import interceptors

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("scene"), interceptors=2)
    await made.start()
    await _both(made)
    yield made
    await made.close()


async def _both(scene: Scene) -> None:
    async with asyncio.timeout(30):
        while scene.interceptors.alive < 2:
            await asyncio.sleep(0.05)


async def test_several_share_the_work(scene: Scene) -> None:
    """Connections go to each in turn, and each knows the secrets."""
    token = secret()
    await scene.tell(token)
    assert len({await scene.interceptors.port() for _ in range(4)}) == 2
    async with scene.serving() as server:
        for _ in range(4):
            assert (await scene.ask(server.port, f"X-Key: {token.placeholder}")).status == 200
        assert {got["x-key"] for got in server.got} == {VALUE.encode()}


async def test_nobody_of_its_user_reads_its_memory(scene: Scene) -> None:
    """Nor is a core file of it written, while another program of that user is open to it."""
    await scene.tell(secret())
    pid, user = scene.interceptors._processes[0].process.pid, scene.config.interceptor_user
    as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--"]
    assert f"{pwd.getpwnam(user).pw_uid}\t" in Path(f"/proc/{pid}/status").read_text()
    assert re.search(r"Max core file size\s+0\s+0\s", Path(f"/proc/{pid}/limits").read_text())
    other = await asyncio.create_subprocess_exec(*as_user, "sleep", "60")
    try:
        for name in ("environ", "maps", "mem"):
            looked = await asyncio.create_subprocess_exec(
                *as_user, "head", "-c", "0", f"/proc/{pid}/{name}", stderr=asyncio.subprocess.PIPE
            )
            _out, said = await looked.communicate()
            assert b"Permission denied" in said, (name, said)
            looked = await asyncio.create_subprocess_exec(*as_user, "head", "-c", "0", f"/proc/{other.pid}/{name}")
            assert await looked.wait() == 0, name
    finally:
        other.kill()
        await other.wait()


async def test_one_that_does_not_obey_is_ended(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A revocation does not wait for a process that stands still: it is killed, and another one takes its place."""
    monkeypatch.setattr(interceptors, "_OBEYING", 0.5)
    monkeypatch.setattr(interceptors, "BACKOFF", (0.0,))
    token = secret()
    await scene.tell(token)
    pid = scene.interceptors._processes[0].process.pid
    os.kill(pid, signal.SIGSTOP)
    await scene.tell()
    await _both(scene)
    assert pid not in [one.process.pid for one in scene.interceptors._processes]
    assert not Path(f"/proc/{pid}").exists()


async def test_they_end_with_their_node(scene: Scene) -> None:
    """Also one that was never told to: its end of the socket pair closes."""
    processes = [one.process for one in scene.interceptors._processes]
    assert len(processes) == 2
    for one in scene.interceptors._processes:
        one.writer.close()
    async with asyncio.timeout(10):
        assert [await process.wait() for process in processes] == [0, 0]
    await _both(scene)
