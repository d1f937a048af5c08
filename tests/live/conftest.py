"""A real node for each module of live tests; one that wants another kind of node makes its own `process`."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator

import pytest

from tests.live.nodes import NodeProcess
from vm.api import Node


@pytest.fixture(scope="module")
def process() -> Iterator[NodeProcess]:
    """A node of this module's own, whose machines are cloned."""
    made = NodeProcess.cloning()
    made.start()
    yield made
    made.close()


@pytest.fixture
def node(process: NodeProcess) -> Node:
    """What the module's node answers to."""
    return process.client


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note of a test that it failed, for what cleans up after it."""
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


@pytest.fixture(autouse=True)
def nothing_left_by_a_failure(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that fails leaves nothing to the next one of its module, nor to itself when it is tried again."""
    process = request.getfixturevalue("process") if "process" in request.fixturenames else None
    if not isinstance(process, NodeProcess):
        yield
        return
    if process.process is None:
        process.start()  # a test that failed had killed it
    before = asyncio.run(process.holdings())
    yield
    if request.node.stash.get(FAILED, False):
        if process.process is None:
            process.start()
        asyncio.run(process.back_to(*before))
