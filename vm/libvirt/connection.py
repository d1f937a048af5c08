"""One connection to libvirt, its event loop and its events; embedded in this process unless the URI says otherwise."""

from __future__ import annotations

import json
import os
import pwd
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import libvirt
import libvirt_qemu  # type: ignore[import-untyped]

from vm.api import StopReason
from vm.errors import HypervisorError
from vm.host.run import run
from vm.libvirt.errors import translated

_COMPILED_IN = "libvirt-qemu"


class Happening(Enum):
    """What libvirt may tell about a domain by itself."""

    STOPPED = "stopped"
    DISK_FULL = "disk_full"  # paused: its disk had no room for a write


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to the domain of that name; `reason` only with STOPPED."""

    domain: str
    what: Happening
    reason: StopReason | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class QemuUser:
    """Who QEMU runs as."""

    name: str
    uid: int
    gid: int


_loop_started = threading.Lock()
_loop: threading.Thread | None = None


def _start_event_loop() -> None:
    """libvirt has one event loop per process, and it must be there before the first open."""
    global _loop
    with _loop_started:
        if _loop is not None:
            return
        libvirt.virEventRegisterDefaultImpl()
        # Errors are raised as exceptions anyhow; without this each is printed as well
        libvirt.registerErrorHandler(lambda context, error: None, None)

        def turn() -> None:
            while True:
                libvirt.virEventRunDefaultImpl()

        _loop = threading.Thread(target=turn, name="libvirt events", daemon=True)
        _loop.start()


def embedded_uri(root: Path) -> str:
    """The URI of a driver inside this process whose files lie below `root`."""
    return f"qemu:///embed?root={root}"


def qemu_conf(*, user: str, group: str, systemd: bool, apparmor: bool) -> str:
    """The embedded driver's qemu.conf. We own the files, so it must not change their owners. Pure."""
    lines = [
        f'user = "{user}"',
        f'group = "{group}"',
        "dynamic_ownership = 0",
        "remember_owner = 0",
        'stdio_handler = "file"',
        "max_core = 0",
        "seccomp_sandbox = 1",
    ]
    if not apparmor:
        lines.append('security_driver = "none"')
    if not systemd:
        lines += ["namespaces = []", "cgroup_controllers = []"]
    return "\n".join(lines) + "\n"


def embedded_prepare(root: Path, user: QemuUser) -> None:
    """Write the embedded driver's configuration where it will look for it. Repeatable."""
    try:
        pwd.getpwnam(_COMPILED_IN)
    except KeyError:
        # The driver looks this user up before it reads our configuration; Debian makes it only with libvirt's daemon
        run(["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent",
             "--shell", "/usr/sbin/nologin", _COMPILED_IN])  # fmt: skip
    place = root / "etc"
    place.mkdir(parents=True, exist_ok=True)
    text = qemu_conf(
        user=user.name,
        group=f"+{user.gid}",
        systemd=Path("/run/systemd/system").exists(),
        apparmor=Path("/sys/kernel/security/apparmor/profiles").exists(),
    )
    conf = place / "qemu.conf"
    if not conf.exists() or conf.read_text() != text:
        conf.write_text(text)


class Connection:
    """An open connection. Its methods block and may be called from any thread; `on_event` comes from libvirt's own."""

    def __init__(self, uri: str, on_event: Callable[[Event], None]) -> None:
        _start_event_loop()
        self._on_event = on_event
        self._reset: set[str] = set()
        with translated():
            self._conn = libvirt.open(uri)
            self._conn.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None)
            self._conn.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON, self._io_error, None)
            # libvirt tells that a guest ended, QEMU's own event also how: a panic (panic=-1) is a reset
            libvirt_qemu.qemuMonitorEventRegister(self._conn, None, "SHUTDOWN", self._shutdown, None, 0)
        # Stale domains are cleaned up in the event loop's first turn, and must not be listed before
        turned = threading.Event()
        timer = libvirt.virEventAddTimeout(0, lambda timer, _: turned.set(), None)
        if not turned.wait(10):
            raise HypervisorError("libvirt's event loop does not turn")
        libvirt.virEventRemoveTimeout(timer)

    @property
    def raw(self) -> libvirt.virConnect:
        """libvirt's own object, for the other modules of this package."""
        return self._conn

    def versions(self) -> tuple[int, int]:
        """libvirt's and QEMU's versions, as numbers."""
        with translated():
            return int(self._conn.getLibVersion()), int(self._conn.getVersion())

    def close(self) -> None:
        """Let go of libvirt; machines run on. Repeatable."""
        with translated():
            self._conn.close()

    def _lifecycle(self, conn: object, domain: libvirt.virDomain, event: int, detail: int, opaque: object) -> None:
        # One that was saved has ended because we wanted it
        if event == libvirt.VIR_DOMAIN_EVENT_STOPPED and detail != libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED:
            reason, words = _STOPPED.get(detail, (StopReason.HYPERVISOR_DIED, "libvirt gave no reason"))
            if domain.name() in self._reset:
                self._reset.discard(domain.name())
                if reason is StopReason.GUEST_SHUTDOWN:
                    reason, words = StopReason.GUEST_CRASHED, "the guest's kernel panicked, or the guest was reset"
            self._on_event(Event(domain.name(), Happening.STOPPED, reason, words))

    def _shutdown(
        self,
        conn: object,
        domain: libvirt.virDomain,
        event: str,
        seconds: int,
        micros: int,
        details: str,
        opaque: object,
    ) -> None:
        if json.loads(details or "{}").get("reason") in ("guest-reset", "guest-panic"):
            self._reset.add(domain.name())

    def _io_error(
        self, conn: object, domain: libvirt.virDomain, path: str, device: str, action: int, reason: str, opaque: object
    ) -> None:
        if action == libvirt.VIR_DOMAIN_EVENT_IO_ERROR_PAUSE:
            self._on_event(Event(domain.name(), Happening.DISK_FULL, detail=reason))


_STOPPED = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: (StopReason.GUEST_SHUTDOWN, "the guest powered itself off"),
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: (StopReason.GUEST_CRASHED, "the guest's kernel crashed"),
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: (StopReason.HYPERVISOR_DIED, "QEMU ended by itself or was killed"),
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: (StopReason.HYPERVISOR_DIED, "somebody destroyed its domain"),
}


def open_embedded(root: Path, user: QemuUser, on_event: Callable[[Event], None]) -> Connection:
    """A connection to the driver embedded in this process; its machines outlive it."""
    embedded_prepare(root, user)
    # libvirt makes its directories with this mask, and QEMU's user must be able to pass through them
    before = os.umask(0o022)
    try:
        return Connection(embedded_uri(root), on_event)
    finally:
        os.umask(before)
