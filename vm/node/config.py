"""What a node process is told about its installation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """`data` and `image_cache` as provisioned by vm.host.provision; `libvirt_uri` empty for the embedded driver.

    `image` is what a machine is made from that asks for none in particular: a recipe hash, or empty for the newest.
    `accelerator` is "kvm", "tcg", or empty to find out. Sizes in MiB; times in seconds.

    Templates and the pool: `warm` is the machine that is wanted most, `(memory_mib, vcpus, disk_gib)`, for which there
    is always a template, and `pool_floor` clones wait; as much as demand asks for, up to `pool_ceiling` in all, never
    holding more than `pool_memory_mib` (0: a quarter of the host's). None: templates are baked on first use only.
    `clones` False boots every machine.
    `egress_internal_allow` are patterns (vm/egress/policy.py) of what is always refused otherwise; `egress_dns` is the
    `address:port` of the resolver that is asked for guests, empty for the system's. `egress_ask_seconds` is how long a
    connection waits that somebody wants to be asked about, `egress_connections` how many a machine has at a time.

    Guests trust the installation's own authority and, if `trust_host_store`, those that this host was given as well.
    `interceptors` processes put secrets into requests, as `interceptor_user`, with `interceptor_python`; what they talk
    to must be known to the host's own store of authorities, or be in `egress_ca_file` (PEM). A connection that was
    between requests for `interceptor_resting` seconds keeps the guest's end only, until the next one.

    `egress_hooks` are `module.callable=host` words (vm/egress/hooks.py), imported from `egress_hooks_path`.

    No machine is let in that leaves the host less than `memory_reserve_mib` or `low_memory_mib`, below which somebody
    else suspends machines; the pool gives its memory back before that.

    `scratch` is a directory in memory (tmpfs) for images that live for a second.
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
    memory_reserve_mib: int = 512
    low_memory_mib: int = 0
    clones: bool = True
    egress_internal_allow: tuple[str, ...] = ()
    egress_dns: str = ""
    egress_ask_seconds: float = 60.0
    egress_connections: int = 1024
    egress_ca_file: Path | None = None
    egress_hooks: tuple[str, ...] = ()
    egress_hooks_path: Path | None = None
    trust_host_store: bool = True
    interceptors: int = 1
    interceptor_resting: float = 10.0
    interceptor_user: str = "atoll-proxy"
    interceptor_python: Path = Path(__file__).resolve().parents[2] / ".venv-interceptor" / "bin" / "python"
    warm: tuple[int, int, int] | None = None
    pool_floor: int = 0
    pool_ceiling: int = 0
    pool_memory_mib: int = 0
    templates_kept: int = 4
    scratch: Path = Path("/dev/shm")  # noqa: S108 (a directory of our own is made in it)

    @property
    def kept_free_mib(self) -> int:
        """MiB of memory that stay free of machines."""
        return max(self.memory_reserve_mib, self.low_memory_mib)
