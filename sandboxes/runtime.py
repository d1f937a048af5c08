"""The composition root: gives the domain its node; tests put another one here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from weakref import WeakKeyDictionary

from sandboxes.config import config
from vm.api import Node
from vm.guest.calls import GuestCall as GuestCall
from vm.node.client import NodeClient


def _from_settings() -> Node:
    return NodeClient(config()["node_socket"], config()["node_key"])


_make: Callable[[], Node] = _from_settings
# A client belongs to the event loop that made it: Celery's tasks run one loop each.
_nodes: WeakKeyDictionary[asyncio.AbstractEventLoop, Node] = WeakKeyDictionary()


def node() -> Node:
    """The node, for the running event loop."""
    loop = asyncio.get_running_loop()
    if loop not in _nodes:
        _nodes[loop] = _make()
    return _nodes[loop]


def use(make: Callable[[], Node] | None) -> None:
    """Take nodes from `make` from now on; None goes back to the settings."""
    global _make
    _make = make or _from_settings
    _nodes.clear()
