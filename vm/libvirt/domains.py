"""Domains: made paused, resumed, looked at, destroyed. Every call blocks; run them in the node's lanes."""

from __future__ import annotations

from dataclasses import dataclass

import libvirt

from vm.errors import MachineGone
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
