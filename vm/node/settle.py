"""What a node does before it serves: makes records and host agree, whatever the last one was killed at."""

from __future__ import annotations

import logging
import shutil

from vm.api import MachineState, StopReason
from vm.host.kvm import boot_id
from vm.libvirt import domains
from vm.libvirt.domains import DomainState
from vm.net.namespace import namespace_names, namespace_remove, tap_names, tap_remove
from vm.node.machines import MAX_BOOTS, Machine, Machines
from vm.node.records import Record, record_load

log = logging.getLogger("atoll.node")
_LIVE = (MachineState.READY, MachineState.LOST)
_PATIENCE = 60.0


async def settle(machines: Machines) -> None:
    """Adopt what runs, queue again what was starting, end the rest with a reason, and remove what no record names."""
    records = _load(machines)
    found = await machines.lanes.run(
        "settle", lambda: domains.domain_list(machines.conn, machines.names.prefix), deadline=_PATIENCE
    )
    existing = {domain.name: domain for domain in found}
    kept: set[str] = set()
    again: list[Machine] = []
    for record in records:
        machine = machines.known[record.machine] = Machine(record)
        if record.state is MachineState.STOPPED:
            continue
        verdict = _judge(record, existing.get(record.domain))
        if verdict == "adopt":
            kept.add(record.domain)
        elif verdict == "again":
            again.append(machine)
        else:
            machines.stopped(machine, *verdict)
    await machines.lanes.run("settle", lambda: _sweep(machines, set(existing), kept), deadline=_PATIENCE)
    for machine in machines.known.values():
        if machine.record.domain in kept:
            log.info("machine %s runs on", machine.record.machine)
            machines.adopt(machine)
    for machine in again:
        machine.record.enter(MachineState.QUEUED)
        machines.enqueue(machine)


def _judge(record: Record, domain: DomainState | None) -> str | tuple[StopReason, str]:
    """ "adopt", "again" (boot it once more), or why it has stopped. Pure but for the host's boot id."""
    if record.boot_id != boot_id():
        return StopReason.HOST_RESTARTED, "the host was restarted"
    if record.state in _LIVE and domain is not None:
        if domain.running:
            return "adopt"
        return StopReason.DISK_FULL, "it was paused, as for want of room on the host's disk, while the node was down"
    if record.state in _LIVE:
        return StopReason.HYPERVISOR_DIED, "it ended while the node was down"
    if record.boots >= MAX_BOOTS:
        return StopReason.BOOT_FAILED, f"the node ended {record.boots} times while it was starting"
    return "again"


def _load(machines: Machines) -> list[Record]:
    records = []
    for place in sorted(machines.layout.machines.iterdir()):
        if not place.is_dir():
            continue
        try:
            records.append(record_load(place / "machine.json"))
        except FileNotFoundError:
            log.info("removing %s: it is half-made, or half-forgotten", place.name)
            shutil.rmtree(place, ignore_errors=True)
        except ValueError as error:
            # Its disk may be somebody's work: a person must look
            log.error("machine %s is left alone: %s", place.name, error)
    return records


def _sweep(machines: Machines, existing: set[str], kept: set[str]) -> None:
    for name in existing - kept:
        log.info("destroying the domain %s", name)
        domains.domain_destroy(machines.conn, name)
    for name in namespace_names(machines.names.prefix):
        if name not in kept:
            log.info("removing the namespace %s", name)
            namespace_remove(name)
    # A tap in use is in its machine's namespace
    for name in tap_names(machines.names.tap_prefix):
        log.info("removing the tap %s", name)
        tap_remove(name)
    sockets = {machines.layout.agent(name.removeprefix(machines.names.prefix)) for name in kept}
    for path in machines.layout.agents.iterdir():
        if path not in sockets:
            path.unlink(missing_ok=True)
    for path in machines.layout.machines.glob("*/*.new"):
        path.unlink(missing_ok=True)
