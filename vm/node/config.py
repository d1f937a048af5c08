"""What a node process is told about its installation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """`data` and `image_cache` as provisioned by vm.host.provision; `libvirt_uri` empty for the embedded driver.

    `image` is what a machine is made from that asks for none in particular: a recipe hash, or empty for the newest.
    `accelerator` is "kvm", "tcg", or empty to find out. Sizes in MiB; times in seconds.
    """

    data: Path
    image_cache: Path
    key_file: Path
    service_user: str = "atoll"
    machine_user: str = "atoll-qemu"
    libvirt_uri: str = ""
    image: str = ""
    accelerator: str = ""
    boot_places: int = 2
    queue_limit: int = 64
    boot_patience: float = 90.0
    heartbeat: float = 10.0
    tb_cache_mib: int = 128
    disk_reserve_mib: int = 512
