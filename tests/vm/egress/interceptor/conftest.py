"""One scene for a module: an interceptor takes seconds to start."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.vm.egress.interceptor.scene import Scene


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    """What the tests of a module share."""
    scene = Scene(tmp_path_factory.mktemp("scene"))
    await scene.start()
    yield scene
    await scene.close()


@pytest_asyncio.fixture(loop_scope="module")
async def scene(stage: Scene) -> AsyncIterator[Scene]:
    """A scene in which nothing has happened yet."""
    await stage.tell()
    stage.passages.clear()
    yield stage
