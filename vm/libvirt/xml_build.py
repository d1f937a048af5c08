"""Domain XML from our own description of a machine. Pure, without decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from vm.api import VOLUMES
from vm.host.cgroups import Bounds

_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
ElementTree.register_namespace("qemu", _QEMU)

PORTS = 4
"""Devices of a machine that take a port from the beginning: its disk, its card, its channel and its entropy."""


@dataclass(frozen=True, slots=True)
class DomainPlan:
    """Everything a domain is made of, decided already. `tb_cache_mib` bounds TCG's translations; unused with KVM.

    `bounds` are libvirt's to set, where it makes control groups. `unasked` leaves out libvirt's questions about each
    CPU feature and the guest's announcements (see `domains.may_start_unasked`).
    """

    name: str
    uuid: str
    accelerator: str  # "kvm" or "tcg"
    memory_mib: int
    vcpus: int
    kernel: Path
    initrd: Path
    cmdline: str
    disk: Path
    agent_socket: Path
    tap: str
    mac: str
    tb_cache_mib: int
    unasked: bool = True
    bounds: Bounds | None = None


def domain(plan: DomainPlan) -> str:
    """A machine without USB, graphics, balloon or serial console: disk, network card, channel and entropy only."""
    kvm = plan.accelerator == "kvm"
    root = ElementTree.Element("domain", type="kvm" if kvm else "qemu")
    _add(root, "name", plan.name)
    _add(root, "uuid", plan.uuid)
    # libvirt gives it another value at each restore; the guest's kernel notices, and reseeds its random numbers before
    # its programs run on: two machines from one memory must not share any
    _add(root, "genid")
    # A guest's memory does not belong in a core dump: it may hold anything
    _add(root, "memory", str(plan.memory_mib), unit="MiB", dumpCore="off")
    _add(root, "vcpu", str(plan.vcpus))
    if plan.bounds is not None:
        _add(_add(root, "memtune"), "hard_limit", str(plan.bounds.memory // 2**20), unit="MiB")
        tuning = _add(root, "cputune")
        _add(tuning, "global_period", "100000")
        _add(tuning, "global_quota", str(plan.bounds.quota))
    system = _add(root, "os")
    _add(system, "type", "hvm", arch="x86_64", machine="q35")
    _add(system, "kernel", str(plan.kernel))
    _add(system, "initrd", str(plan.initrd))
    _add(system, "cmdline", plan.cmdline)
    features = _add(root, "features")
    _add(features, "acpi")
    _add(features, "apic")
    if not kvm:
        _add(_add(features, "tcg"), "tb-cache", str(plan.tb_cache_mib), unit="MiB")
    _add(root, "cpu", mode="host-passthrough" if kvm else "maximum")
    _add(root, "clock", offset="utc")
    # A guest that reboots itself, or whose kernel panics (panic=-1), has ended: it is not booted again behind our back
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        _add(root, event, "destroy")
    devices = _add(root, "devices")
    _add(devices, "controller", type="usb", index="0", model="none")
    # One for each device, numbered by libvirt, and free ones: what is plugged in later needs a port that is there
    _add(devices, "controller", type="pci", index="0", model="pcie-root")
    for _ in range(PORTS + VOLUMES):
        _add(devices, "controller", type="pci", model="pcie-root-port")
    disk = _add(devices, "disk", type="file", device="disk")
    # A full host disk pauses this machine and tells us, whatever else fails is the guest's to see
    _add(disk, "driver", name="qemu", type="qcow2", cache="writeback", error_policy="enospace", discard="unmap")
    _add(disk, "source", file=str(plan.disk))
    _add(disk, "target", dev="vda", bus="virtio")
    card = _add(devices, "interface", type="ethernet")
    _add(card, "mac", address=plan.mac)
    _add(card, "target", dev=plan.tap, managed="yes")
    _add(card, "model", type="virtio")
    _add(card, "rom", enabled="no")
    # QEMU listens, so that the channel is there for whichever node process comes next
    channel = _add(devices, "channel", type="unix")
    _add(channel, "source", mode="bind", path=str(plan.agent_socket))
    _add(channel, "target", type="virtio", name="atoll.agent")
    _add(_add(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")
    _add(devices, "memballoon", model="none")
    _add(devices, "panic", model="isa")
    if plan.unasked:
        # After a restore QEMU would have the guest announce its card five times, to a network where nobody listens:
        # in its first half second it has better things to do
        override = _add(_add(root, f"{{{_QEMU}}}override"), f"{{{_QEMU}}}device", alias="net0")
        frontend = _add(override, f"{{{_QEMU}}}frontend")
        _add(frontend, f"{{{_QEMU}}}property", name="guest_announce", type="bool", value="false")
        # libvirt would ask QEMU for each of some 200 CPU features, one by one, at every start: 0.2 s that nobody needs
        _add(_add(root, f"{{{_QEMU}}}capabilities"), f"{{{_QEMU}}}del", capability="cpu-unavailable-features")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


@dataclass(frozen=True, slots=True)
class Place:
    """What differs between a machine and its clone: everything that is on the host under a name.

    `volumes` are the files of further disks, by their serials; those that are not named stay what they are.
    """

    name: str
    uuid: str
    disk: Path
    agent_socket: Path
    tap: str
    volumes: Mapping[str, Path] = field(default_factory=dict)


def moved(xml: str, place: Place) -> str:
    """The XML of a saved domain as that of another one at `place`; all that the guest can see stays as it is."""
    root = ElementTree.fromstring(xml)  # noqa: S314 (libvirt wrote it)
    _text(root, "name", place.name)
    _text(root, "uuid", place.uuid)
    _find(_root_disk(root), "source").set("file", str(place.disk))
    # libvirt would believe this instead of the chain that is written in each disk's own header
    for disk in root.iterfind("devices/disk"):
        for known in disk.findall("backingStore"):
            disk.remove(known)
        if (path := place.volumes.get(disk.findtext("serial", ""))) is not None:
            _find(disk, "source").set("file", str(path))
    _find(root, "devices/interface/target").set("dev", place.tap)
    _find(root, "devices/channel/source").set("path", str(place.agent_socket))
    return ElementTree.tostring(root, encoding="unicode")


def disk_of(xml: str) -> Path:
    """The file that the domain's root disk writes to."""
    root = ElementTree.fromstring(xml)  # noqa: S314 (libvirt wrote it)
    return Path(_find(_root_disk(root), "source").attrib["file"])


def snapshot(*, memory: Path, overlay: Path, others: Mapping[str, Path] | None = None) -> str:
    """A snapshot of memory and disk together: memory into a file, new writes into an overlay that is there already.

    `others` are such overlays of further disks, by what the domain calls these.
    """
    root = ElementTree.Element("domainsnapshot")
    _add(root, "memory", snapshot="external", file=str(memory))
    disks = _add(root, "disks")
    for target, path in {"vda": overlay, **(others or {})}.items():
        disk = _add(disks, "disk", name=target, snapshot="external", type="file")
        _add(disk, "driver", type="qcow2")
        _add(disk, "source", file=str(path))
    return ElementTree.tostring(root, encoding="unicode")


def _root_disk(root: ElementTree.Element) -> ElementTree.Element:
    for disk in root.iterfind("devices/disk"):
        if _find(disk, "target").attrib["dev"] == "vda":
            return disk
    raise ValueError("a domain without a root disk")


def _find(parent: ElementTree.Element, path: str) -> ElementTree.Element:
    found = parent.find(path)
    if found is None:
        raise ValueError(f"a domain without {path}")
    return found


def _text(parent: ElementTree.Element, path: str, text: str) -> None:
    _find(parent, path).text = text


def _add(parent: ElementTree.Element, tag: str, text: str | None = None, /, **attributes: str) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, tag, attributes)
    element.text = text
    return element
