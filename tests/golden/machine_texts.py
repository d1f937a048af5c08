"""Texts the machinery generates, kept as files here; `python -m tests.golden.machine_texts` rewrites them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vm.host.cgroups import Bounds
from vm.libvirt.connection import qemu_conf
from vm.libvirt.xml_build import DomainPlan, Place, domain, moved, snapshot
from vm.net import nftables
from vm.storage.qcow2 import overlay_create_argv

HERE = Path(__file__).parent

PLAN = DomainPlan(
    name="atoll-1a2b-0123456789abcdef0123456789abcdef",
    uuid="01234567-89ab-cdef-0123-456789abcdef",
    accelerator="tcg",
    memory_mib=1280,
    vcpus=2,
    kernel=Path("/images/h/vmlinux"),
    initrd=Path("/images/h/initrd.img"),
    cmdline='quiet panic=-1 odd="<&>"',
    disk=Path("/data/disks/l.qcow2"),
    agent_socket=Path("/data/run/agents/m.sock"),
    tap="t1a2b1",
    mac="52:54:00:a7:01:01",
    tb_cache_mib=128,
)

TEXTS: dict[str, Callable[[], str]] = {
    "domain-tcg.xml": lambda: domain(PLAN),
    "domain-kvm.xml": lambda: domain(replace(PLAN, accelerator="kvm")),
    "domain-bounded.xml": lambda: domain(replace(PLAN, bounds=Bounds(memory=1920 * 2**20, cpus=2.5), unasked=False)),
    "domain-moved.xml": lambda: moved(
        domain(PLAN),
        Place(
            name="atoll-1a2b-ffffffffffffffffffffffffffffffff",
            uuid="ffffffff-ffff-ffff-ffff-ffffffffffff",
            disk=Path("/data/disks/other.qcow2"),
            agent_socket=Path("/data/run/agents/other.sock"),
            tap="t1a2b2",
        ),
    ),
    "snapshot.xml": lambda: snapshot(memory=Path("/dev/shm/a/m.save"), overlay=Path("/data/disks/l.qcow2")) + "\n",
    "nftables-gated.nft": nftables.gated,
    "qemu-container.conf": lambda: qemu_conf(user="atoll-qemu", group="+994", systemd=False, apparmor=False),
    "qemu-debian.conf": lambda: qemu_conf(user="atoll-qemu", group="+994", systemd=True, apparmor=True),
    "overlay-create.txt": lambda: (
        "\n".join(
            overlay_create_argv(
                Path("/data/disks/l.new"), backing=Path("/images/h/root.img"), backing_format="raw", size="10G"
            )
        )
        + "\n"
    ),
}

if __name__ == "__main__":
    for name, text in TEXTS.items():
        (HERE / name).write_text(text())
