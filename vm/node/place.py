"""What every part of a node works with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vm.libvirt.connection import Connection
from vm.node.config import NodeConfig
from vm.node.lanes import Lanes
from vm.node.records import Names
from vm.storage.layout import Layout


@dataclass(frozen=True, slots=True)
class Place:
    """A node's settings, its directories, its names, its threads and libvirt; `scratch` is for images in memory."""

    config: NodeConfig
    layout: Layout
    names: Names
    lanes: Lanes
    conn: Connection
    scratch: Path
