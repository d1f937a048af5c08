"""What a node does before it serves: makes records and host agree, whatever the last one was killed at."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from vm.api import MachineState, Origin, StopReason
from vm.errors import VmError
from vm.host.kvm import boot_id
from vm.libvirt import domains, save_image
from vm.libvirt.domains import DomainState
from vm.node.booting import MAX_BOOTS
from vm.node.keeper import Machine
from vm.node.machines import Machines
from vm.node.records import Record, record_load, write_whole
from vm.node.roster import RUNNING
from vm.node.sweep import PATIENCE, expected, sweep_all
from vm.storage.qcow2 import layers_of

log = logging.getLogger("atoll.node")


async def settle(machines: Machines) -> None:
    """Adopt what runs, queue again what was starting, end the rest with a reason, and remove what no record names."""
    machines.layout.disks.mkdir(mode=0o711, exist_ok=True)
    await machines.lanes.run("settle", machines.volumes.load, deadline=PATIENCE)
    records = _load(machines)
    await machines.lanes.run("settle", machines.templates.load, deadline=PATIENCE)
    found = await machines.lanes.run(
        "settle", lambda: domains.domain_list(machines.conn, machines.names.prefix), deadline=PATIENCE
    )
    existing = {domain.name: domain for domain in found}
    adopted: list[Machine] = []
    again: list[Machine] = []
    measured: list[Machine] = []
    for record in records:
        machine = machines.known[record.machine] = Machine(record)
        if record.state is MachineState.STOPPED:
            continue
        verdict = _judge(machines, record, existing.get(machines.names.of(record.body)))
        if verdict == "adopt":
            adopted.append(machine)
        elif verdict == "again":
            if record.origin is Origin.FORK and record.template:
                record.origin, record.template, record.disks, record.fresh = Origin.COLD, "", [], True
            machines.booting.new_body(record)
            again.append(machine)
        elif verdict == "suspended":
            measured.append(machine)
            if record.state is not MachineState.SUSPENDED:
                record.cpu_before = record.cpu_seconds
                record.memory, record.committed = str(machines.layout.memory(record.machine)), False
                record.enter(MachineState.SUSPENDED)
                machines.roster.save(record)
        else:
            machines.layout.memory(record.machine).unlink(missing_ok=True)
            machines.roster.stopped(machine, *verdict)
    for machine in measured:
        machines.roster.measure_disk(machine.record)
    for machine in adopted:
        await _know_layers(machines, machine.record)
    kept = {machine.record.body for machine in adopted}
    wanted = expected(machines, kept=kept)
    await machines.lanes.run("settle", lambda: sweep_all(machines, wanted), deadline=PATIENCE)
    for machine in adopted:
        await _adopt(machines, machine)
    for machine in again:
        machine.record.enter(MachineState.QUEUED)
        machines.booting.enqueue(machine)
    machines.pool.open()


def _judge(machines: Machines, record: Record, domain: DomainState | None) -> str | tuple[StopReason, str]:
    """ "adopt", "again" (start it once more), "suspended", or why it has stopped. Reads, but changes nothing."""
    memory = _is_whole(machines.layout.memory(record.machine))
    if record.state is MachineState.SUSPENDING and domain is not None:
        return "adopt"
    if record.state is MachineState.SUSPENDED or (record.state is MachineState.SUSPENDING and memory):
        return "suspended" if memory else (StopReason.RESUME_FAILED, "the image of its memory is gone, or damaged")
    resuming = record.origin is Origin.RESUME and not record.committed
    if resuming and record.state not in RUNNING and memory:
        return "again" if record.boots < MAX_BOOTS and record.boot_id == boot_id() else "suspended"
    if record.boot_id != boot_id():
        return StopReason.HOST_RESTARTED, "the host was restarted"
    if record.state in (*RUNNING, MachineState.SUSPENDING):
        if domain is None:
            return StopReason.HYPERVISOR_DIED, "it ended while the node was down"
        if not domain.disk_full:
            # Also one that stood still for a moment, as in a fork
            return "adopt"
        return StopReason.DISK_FULL, "the host's disk had no room for what the guest wrote while the node was down"
    if record.origin in (Origin.RESUME, Origin.FORK):
        if domain is not None and record.committed:
            return "adopt"
        if record.origin is Origin.FORK and record.template:
            return "again"  # the memory that it goes on from is kept
        if record.origin is Origin.FORK and _is_whole(machines.scratch / f"{record.body}.save"):
            return "again"
        reason = StopReason.RESUME_FAILED if record.origin is Origin.RESUME else StopReason.BOOT_FAILED
        return reason, "the node ended while its memory was being restored"
    if record.boots >= MAX_BOOTS:
        return StopReason.BOOT_FAILED, f"the node ended {record.boots} times while it was starting"
    return "again"


def _is_whole(memory: Path) -> bool:
    try:
        save_image.read(memory)
    except (FileNotFoundError, ValueError):
        return False
    except OSError as error:
        # What cannot be read now is not gone
        log.error("%s: %s", memory, error)
    return True


async def _know_layers(machines: Machines, record: Record) -> None:
    """Ask QEMU what a running machine writes to: a fork may have been cut between the snapshot and the record of it."""
    name = machines.names.of(record.body)

    def look() -> list[str]:
        return [path.stem for path in layers_of(domains.domain_disk(machines.conn, name))[:-1]]

    try:
        record.disks = await machines.lanes.run(name, look, deadline=PATIENCE)
        await machines.attaching.look(record)
    except VmError as error:
        log.error("machine %s: it is not known on which layers it runs, so none is removed: %s", record.machine, error)
        machines.layers.frozen = True


async def _adopt(machines: Machines, machine: Machine) -> None:
    record = machine.record
    name = machines.names.of(record.body)
    log.info("machine %s runs on", record.machine)
    machines.layout.memory(record.machine).unlink(missing_ok=True)

    # A door before its processor runs on
    await machines.suspending.open_again(record)

    def go_on() -> None:
        state = domains.domain_state(machines.conn, name)
        if state is not None and not state.running:
            domains.domain_resume(machines.conn, name)

    try:
        await machines.lanes.run(name, go_on, deadline=PATIENCE)
        # What it used while no node looked counts, even if it ends before the first look
        await machines.keeper.measure(record)
    except (VmError, OSError) as error:
        log.warning("machine %s: %s", record.machine, error)
    if record.state not in RUNNING:
        record.enter(MachineState.READY)
    record.fresh = False
    machines.roster.save(record)
    machines.suspending.adopt(machine)


def _load(machines: Machines) -> list[Record]:
    records = []
    for place in sorted(machines.layout.machines.iterdir()):
        if not place.is_dir():
            continue
        try:
            _modernise(machines, place)
            records.append(record_load(place / "machine.json"))
        except FileNotFoundError:
            log.info("removing %s: it is half-made, or half-forgotten", place.name)
            shutil.rmtree(place, ignore_errors=True)
        except ValueError as error:
            # Its disk may be somebody's work: a person must look
            log.error("machine %s is left alone, and so is everything that may be its own: %s", place.name, error)
            machines.layers.frozen = True
            machines.roster.know_unreadable(place.name)
    return records


def _modernise(machines: Machines, place: Path) -> None:
    """Bring a record of an earlier version up to date: it kept its disk's one layer beside it."""
    path = place / "machine.json"
    data = json.loads(path.read_text())
    if not isinstance(data, dict) or "domain" not in data:
        return
    layer = secrets.token_hex(16)
    with suppress(FileNotFoundError):
        (place / "root.qcow2").rename(machines.layout.disk(layer))
    body = machines.names.body(data.pop("domain"))
    del data["namespace"]
    # A machine that runs has the file open under its old name, which libvirt would look for: it is started anew
    stopped = {"state": "stopped", "stop_reason": "hypervisor_died", "detail": "Atoll was updated"}
    data.update(stopped if data["state"] != "stopped" else {}, body=body, disks=[layer], fresh=False, origin="cold")
    write_whole(path, data)
