"""Domains: made or restored paused, resumed, saved, destroyed. Every call blocks: the node's lanes run them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import libvirt

from vm.errors import HypervisorError, MachineGone
from vm.libvirt import xml_build
from vm.libvirt.connection import Connection
from vm.libvirt.errors import translated


@dataclass(frozen=True, slots=True)
class DomainState:
    """A domain that exists. `paused` also covers one that never ran."""

    name: str
    running: bool
    paused: bool
    cpu_seconds: float


def domain_create(conn: Connection, xml: str) -> None:
    """Make a domain that exists until it stops, with its processor not running yet. MachineExists, HostFull."""
    with translated():
        conn.raw.createXML(xml, libvirt.VIR_DOMAIN_START_PAUSED)


def domain_resume(conn: Connection, name: str) -> None:
    """Let its processor run. MachineGone."""
    with translated():
        conn.raw.lookupByName(name).resume()


def may_start_unasked(conn: Connection, xml: str) -> bool:
    """Whether this libvirt takes such a domain: it means a name that another version may not know."""
    try:
        with translated():
            conn.raw.domainXMLToNative("qemu-argv", xml, 0)
    except HypervisorError:
        return False
    return True


def domain_pause(conn: Connection, name: str) -> None:
    """Let its processor stand still. MachineGone."""
    with translated():
        conn.raw.lookupByName(name).suspend()


def domain_save(conn: Connection, name: str, image: Path) -> None:
    """Write its memory to `image` and end it; returns when QEMU is gone. HostFull, MachineGone.

    Where that fails the domain runs on, and what was written is no complete image.
    """
    with translated():
        conn.raw.lookupByName(name).saveFlags(str(image), None, libvirt.VIR_DOMAIN_SAVE_PAUSED)


def domain_restore(conn: Connection, image: Path) -> None:
    """A domain from a save image, with its processor not running yet. HypervisorError if the image is no good."""
    with translated():
        conn.raw.restoreFlags(str(image), None, libvirt.VIR_DOMAIN_SAVE_PAUSED)


def domain_snapshot(conn: Connection, name: str, *, memory: Path, overlay: Path) -> None:
    """Write the memory of a running domain to `memory` and let its disk go on in `overlay`, which is there already.

    The disk so far is read-only from then on, and is what the memory knows. The domain stands still for some 25 ms.
    """
    with translated():
        conn.raw.lookupByName(name).snapshotCreateXML(
            xml_build.snapshot(memory=memory, overlay=overlay),
            # ATOMIC: a half-made chain must not survive a failure. NO_METADATA: the chain is in our records.
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT,
        )


def domain_disk(conn: Connection, name: str) -> Path:
    """The file that its root disk writes to now. MachineGone."""
    with translated():
        return xml_build.disk_of(conn.raw.lookupByName(name).XMLDesc())


def domain_pull(conn: Connection, name: str, *, base: Path) -> None:
    """Begin to copy into its disk whatever layers above `base` hold, so that only `base` is below it. MachineGone."""
    with translated():
        conn.raw.lookupByName(name).blockRebase("vda", str(base), 0, 0)


def domain_pulling(conn: Connection, name: str) -> bool:
    """Whether that still goes on. MachineGone."""
    with translated():
        return bool(conn.raw.lookupByName(name).blockJobInfo("vda", 0))


def domain_destroy(conn: Connection, name: str) -> None:
    """End it without asking the guest; returns when QEMU is gone. Repeatable."""
    try:
        with translated():
            conn.raw.lookupByName(name).destroy()
    except MachineGone:
        return


def domain_state(conn: Connection, name: str) -> DomainState | None:
    """How it is, or None if there is none of that name."""
    try:
        with translated():
            return _state(conn.raw.lookupByName(name))
    except MachineGone:
        return None


def domain_list(conn: Connection, prefix: str) -> list[DomainState]:
    """Every domain whose name begins with `prefix`."""
    with translated():
        found = [domain for domain in conn.raw.listAllDomains() if domain.name().startswith(prefix)]
    states = []
    for domain in found:
        try:
            with translated():
                states.append(_state(domain))
        except MachineGone:
            continue  # it ended since
    return states


def _state(domain: libvirt.virDomain) -> DomainState:
    state, _max_memory, _memory, _vcpus, nanoseconds = domain.info()
    return DomainState(
        name=domain.name(),
        running=state in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED),
        paused=state == libvirt.VIR_DOMAIN_PAUSED,
        cpu_seconds=nanoseconds / 1e9,
    )
