"""Interceptors are kept running, share the work, and none goes by orders of old."""

from __future__ import annotations

import asyncio
import os
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
