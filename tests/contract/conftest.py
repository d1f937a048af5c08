"""One suite over the Node protocol of vm.api, run on the fake and, marked `live`, on real machines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.live.nodes import NodeProcess
from vm.api import Node
from vm.fake import FakeNode


@pytest.fixture(scope="module", params=["fake", pytest.param("real", marks=pytest.mark.live)])
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A node; this module's tests share it."""
    if request.param == "fake":
        fake = FakeNode(boot_delay=0.05)
        yield fake
        fake.close()
    else:
        process = NodeProcess.cloning()
        process.start()
        yield process.client
        process.close()
