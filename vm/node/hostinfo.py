"""The host in numbers."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path

from vm.api import HostInfo
from vm.errors import ImageMissing
from vm.host.kvm import boot_id
from vm.node.config import NodeConfig
from vm.storage.images import image_find


def _meminfo(name: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/meminfo has no {name}")


def memory_total() -> int:
    """Bytes of memory."""
    return _meminfo("MemTotal")


def memory_available() -> int:
    """Bytes of memory that a new program could get."""
    return _meminfo("MemAvailable")


def host_info(config: NodeConfig, accelerator: str) -> HostInfo:
    """See vm.api.Node.host_info."""
    disk = shutil.disk_usage(config.data)
    try:
        found = image_find(config.image_cache, config.image)
        image, registries = found.hash, found.registries
    except ImageMissing:
        image, registries = "", ()
    return HostInfo(
        name=socket.gethostname(),
        accelerator=accelerator,
        cpus=os.cpu_count() or 1,
        memory_total=memory_total(),
        memory_available=memory_available(),
        disk_total=disk.total,
        disk_free=disk.free,
        image=image,
        boot_id=boot_id(),
        registries=registries,
    )
