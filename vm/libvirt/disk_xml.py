"""The XML of a disk that is plugged into a running domain, and where it is found there. Pure."""

from __future__ import annotations

from pathlib import Path
from string import ascii_lowercase
from xml.etree import ElementTree

from vm.api import VOLUMES
from vm.errors import VolumeBusy


def disk(path: Path, target: str, serial: str) -> str:
    """A disk as `xml_build.domain` describes the root's, with a serial by which the guest finds it."""
    root = ElementTree.Element("disk", type="file", device="disk")
    driver = {"name": "qemu", "type": "qcow2", "cache": "writeback", "error_policy": "enospace", "discard": "unmap"}
    ElementTree.SubElement(root, "driver", driver)
    ElementTree.SubElement(root, "source", file=str(path))
    ElementTree.SubElement(root, "target", dev=target, bus="virtio")
    ElementTree.SubElement(root, "serial").text = serial
    return ElementTree.tostring(root, encoding="unicode")


def free_target(xml: str) -> str:
    """A name that no disk of the domain has. VolumeBusy if it has as many as there may be."""
    taken = {target.attrib["dev"] for target in _parse(xml).iterfind("devices/disk/target")}
    free = (f"vd{letter}" for letter in ascii_lowercase[1 : VOLUMES + 1])
    found = next((name for name in free if name not in taken), None)
    if found is None:
        raise VolumeBusy(f"the machine has {VOLUMES} volumes already")
    return found


def target_of(xml: str, serial: str) -> str | None:
    """What the domain calls the disk of that serial, if it has it."""
    one = _disk(xml, serial)
    target = None if one is None else one.find("target")
    return None if target is None else target.attrib["dev"]


def found(xml: str, serial: str) -> str:
    """The domain's own description of the disk of that serial."""
    one = _disk(xml, serial)
    if one is None:
        raise ValueError(f"a domain without a disk {serial}")
    return ElementTree.tostring(one, encoding="unicode")


def file_of(xml: str, serial: str) -> Path | None:
    """The file of the disk of that serial, "" being the root disk."""
    one = _disk(xml, serial)
    source = None if one is None else one.find("source")
    return None if source is None else Path(source.attrib["file"])


def snapshot(xml: str, serial: str, overlay: Path) -> str:
    """A snapshot of that disk alone, "" being the root disk: new writes into an overlay that is there already."""
    root = ElementTree.Element("domainsnapshot")
    disks = ElementTree.SubElement(root, "disks")
    for one in _parse(xml).iterfind("devices/disk"):
        target = one.find("target")
        name = "" if target is None else target.attrib["dev"]
        if (one.findtext("serial") or "") == serial:
            disk = ElementTree.SubElement(disks, "disk", name=name, snapshot="external", type="file")
            ElementTree.SubElement(disk, "driver", type="qcow2")
            ElementTree.SubElement(disk, "source", file=str(overlay))
        else:
            ElementTree.SubElement(disks, "disk", name=name, snapshot="no")
    return ElementTree.tostring(root, encoding="unicode")


def serials(xml: str) -> set[str]:
    """The serials of all disks that have one."""
    return {one.text for one in _parse(xml).iterfind("devices/disk/serial") if one.text}


def _disk(xml: str, serial: str) -> ElementTree.Element | None:
    return next((one for one in _parse(xml).iterfind("devices/disk") if (one.findtext("serial") or "") == serial), None)


def _parse(xml: str) -> ElementTree.Element:
    return ElementTree.fromstring(xml)  # noqa: S314 (libvirt wrote it)
