"""The sockets that pages open lead somewhere."""

from __future__ import annotations

import pytest

from ide.consumers import routing

SANDBOX = "sbx_loc_0a1b2c3d4e5f6g7h8j9k"


@pytest.mark.parametrize("path", ["ws/events", f"ws/sandboxes/{SANDBOX}/rpc", f"ws/sandboxes/{SANDBOX}/terminal"])
def test_each_path_that_the_front_end_opens_has_its_consumer(path: str) -> None:
    """A terminal's path has no id, because a new terminal has none yet: the first message says which."""
    *known, everything_else = routing.browser
    assert everything_else.pattern.match(path)
    assert any(route.pattern.match(path) for route in known)
