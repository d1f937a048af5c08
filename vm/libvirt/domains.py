"""Domains: made or restored paused, resumed, saved, destroyed. Every call blocks: the node's lanes run them."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import libvirt
import libvirt_qemu  # type: ignore[import-untyped]

from vm.errors import HypervisorError, MachineGone, VmError
from vm.libvirt import disk_xml, xml_build
from vm.libvirt.connection import Connection
from vm.libvirt.errors import translated

_LOOK = 0.005  # seconds between two looks at a snapshot's progress
_LAST = 32 * 2**20  # bytes that are written while a domain stands still
_ROUNDS = 4  # times that its memory is gone through until it stands still for the rest, however much that is


@dataclass(frozen=True, slots=True)
class DomainState:
    """A domain that exists. `paused` also covers one that never ran; `disk_full` one that had no room to write."""

    name: str
    running: bool
    paused: bool
    disk_full: bool
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


def domain_save_abort(conn: Connection, name: str) -> None:
    """Break off a save that goes on: it fails, and the domain is there still. Repeatable, also where none goes on."""
    with suppress(VmError), translated():
        conn.raw.lookupByName(name).abortJob()


def domain_restore(conn: Connection, image: Path) -> None:
    """A domain from a save image, with its processor not running yet. HypervisorError if the image is no good."""
    with translated():
        conn.raw.restoreFlags(str(image), None, libvirt.VIR_DOMAIN_SAVE_PAUSED)


def domain_snapshot(
    conn: Connection,
    name: str,
    *,
    memory: Path,
    overlay: Path,
    others: Mapping[str, Path] | None = None,
    standing: bool = False,
) -> bool:
    """Write the memory of a running domain to `memory` and let its disk go on in `overlay`, which is there already.

    `others` are such overlays of its volumes' disks, by their serials. The disk so far is read-only from then on, and
    is what the memory knows. The domain stands still for some 25 ms, or all the time if it is to be `standing`.

    False where it was not we who paused it for the last of its memory: that memory is not to be gone on with. QEMU 7.2
    under TCG, where it does that itself, at times loses the timer interrupt of a processor that is busy (seen in one of
    seven forks: seconds without a tick, or a dead kernel). On a host that is busy we come too late.
    """
    with translated():
        domain = conn.raw.lookupByName(name)
        xml = domain.XMLDesc()
        targets = {
            target: path for serial, path in (others or {}).items() if (target := disk_xml.target_of(xml, serial))
        }
        # Else QEMU ends it alone as soon as 300 ms would do
        domain.migrateSetMaxDowntime(1)
        last = _Last(domain, memory)
        if standing:
            domain.suspend()
        else:
            last.start()
        try:
            domain.snapshotCreateXML(
                xml_build.snapshot(memory=memory, overlay=overlay, others=targets),
                # ATOMIC: a half-made chain must not survive a failure. NO_METADATA: the chain is in our records.
                libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_LIVE
                | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
                | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
                | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT,
            )
        finally:
            last.end()
            # libvirt lets it run on by itself, unless the pause came when all was written
            if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                domain.resume()
    return standing or last.paused


class _Last:
    """Pauses a domain when almost all of its memory is written; `paused` says whether that was in time."""

    def __init__(self, domain: libvirt.virDomain, memory: Path) -> None:
        self.paused = False
        self._domain = domain
        self._memory = memory
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pause at last")

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def end(self) -> None:
        """The snapshot has ended. Repeatable."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        with suppress(libvirt.libvirtError):  # it has ended, and whoever makes the snapshot is told why
            while not self._over.wait(_LOOK):
                # Whoever asks before libvirt lets others ask waits until all is over, and is not woken when it does
                if not self._memory.exists():
                    continue
                job = self._domain.jobStats()
                written, left = job.get("memory_processed", 0), job.get("memory_remaining", 0)
                # A guest that writes faster than it is written down would go on for ever
                if written and (left < _LAST or job.get("memory_iteration", 0) > _ROUNDS):
                    self._domain.suspend()
                    # QEMU names who stopped it, until all is written
                    said = libvirt_qemu.qemuMonitorCommand(self._domain, '{"execute": "query-status"}', 0)
                    self.paused = json.loads(said)["return"]["status"] == "paused"
                    return


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


def domain_resident_mib(conn: Connection, name: str) -> int:
    """MiB of the host's memory that it holds. MachineGone."""
    with translated():
        return int(conn.raw.lookupByName(name).memoryStats().get("rss", 0)) // 1024


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
    state, reason = domain.state()
    nanoseconds = domain.info()[4]
    return DomainState(
        name=domain.name(),
        running=state in (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_BLOCKED),
        paused=state == libvirt.VIR_DOMAIN_PAUSED,
        disk_full=state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR,
        cpu_seconds=nanoseconds / 1e9,
    )
