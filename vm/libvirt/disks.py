"""Disks that come and go while a domain runs. Every call blocks: the node's lanes run them."""

from __future__ import annotations

import time
from pathlib import Path

import libvirt

from vm.errors import HypervisorError, MachineGone, VolumeBusy
from vm.libvirt import disk_xml
from vm.libvirt.connection import Connection
from vm.libvirt.errors import translated

_GOING = 10.0  # seconds a guest has to let go of a disk
_LOOK = 0.02


def disk_attach(conn: Connection, name: str, *, disk: Path, serial: str) -> None:
    """Plug a qcow2 file in as a disk of that serial. Repeatable. MachineGone; VolumeBusy where no port is free."""
    with translated():
        domain = conn.raw.lookupByName(name)
        xml = domain.XMLDesc()
    if disk_xml.target_of(xml, serial) is not None:
        return
    try:
        with translated():
            domain.attachDeviceFlags(disk_xml.disk(disk, disk_xml.free_target(xml), serial), _LIVE)
    except HypervisorError as error:
        if "slots" in error.detail or "port" in error.detail:
            raise VolumeBusy("the machine has no place for another volume") from error
        raise


def disk_detach(conn: Connection, name: str, *, serial: str) -> None:
    """Unplug the disk of that serial; returns when QEMU has closed its file. Repeatable, also when the domain is gone.

    HypervisorError if the guest does not let it go.
    """
    until = time.monotonic() + _GOING
    asked = False
    while True:
        try:
            with translated():
                domain = conn.raw.lookupByName(name)
                xml = domain.XMLDesc()
                target = disk_xml.target_of(xml, serial)
                if target is None:
                    return
                if not asked:
                    domain.detachDeviceFlags(disk_xml.found(xml, serial), _LIVE)
                    asked = True
        except MachineGone:
            return
        if time.monotonic() > until:
            raise HypervisorError(f"the guest did not let go of disk {target}")
        time.sleep(_LOOK)


def disk_snapshot(conn: Connection, name: str, *, serial: str, overlay: Path) -> None:
    """Let the disk of that serial ("": the root disk) go on in `overlay`, which is there already. MachineGone.

    Its disk so far is read-only from then on. Call between freeze and thaw.
    """
    with translated():
        domain = conn.raw.lookupByName(name)
        domain.snapshotCreateXML(
            disk_xml.snapshot(domain.XMLDesc(), serial, overlay),
            # ATOMIC: a half-made chain must not survive a failure. NO_METADATA: the chain is in our records.
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT,
        )


def disk_resize(conn: Connection, name: str, *, serial: str, size: int) -> None:
    """Make the disk of that serial ("": the root disk) larger, in bytes. MachineGone."""
    with translated():
        domain = conn.raw.lookupByName(name)
        target = disk_xml.target_of(domain.XMLDesc(), serial)
        domain.blockResize(target, size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)


def disk_file(conn: Connection, name: str, *, serial: str) -> Path | None:
    """The file that the disk of that serial ("": the root disk) writes to now, if it has it. MachineGone."""
    with translated():
        return disk_xml.file_of(conn.raw.lookupByName(name).XMLDesc(), serial)


def disk_serials(conn: Connection, name: str) -> set[str]:
    """The serials of the disks that are plugged in. MachineGone."""
    with translated():
        return disk_xml.serials(conn.raw.lookupByName(name).XMLDesc())


_LIVE = libvirt.VIR_DOMAIN_AFFECT_LIVE
