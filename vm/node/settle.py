"""What a node does before it serves, and again and again: makes records and host agree, whatever it was killed at."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vm.api import MachineState, Origin, StopReason
from vm.errors import VmError
from vm.host.kvm import boot_id
from vm.libvirt import domains, save_image
from vm.libvirt.domains import DomainState
from vm.net.namespace import namespace_names, namespace_remove, tap_names, tap_remove
from vm.node.keeper import Machine
from vm.node.machines import MAX_BOOTS, RUNNING, Machines
from vm.node.records import Record, record_load
from vm.storage.qcow2 import layers_of

log = logging.getLogger("atoll.node")
_PATIENCE = 60.0
SWEEP_EVERY = 20.0
"""Seconds between looks of a node that serves; what is nobody's in two of them in a row is removed."""


async def settle(machines: Machines) -> None:
    """Adopt what runs, queue again what was starting, end the rest with a reason, and remove what no record names."""
    machines.layout.disks.mkdir(mode=0o711, exist_ok=True)
    records = _load(machines)
    await machines.lanes.run("settle", machines.templates.load, deadline=_PATIENCE)
    found = await machines.lanes.run(
        "settle", lambda: domains.domain_list(machines.conn, machines.names.prefix), deadline=_PATIENCE
    )
    existing = {domain.name: domain for domain in found}
    adopted: list[Machine] = []
    again: list[Machine] = []
    for record in records:
        machine = machines.known[record.machine] = Machine(record)
        if record.state is MachineState.STOPPED:
            continue
        verdict = _judge(machines, record, existing.get(machines.names.of(record.body)))
        if verdict == "adopt":
            adopted.append(machine)
        elif verdict == "again":
            again.append(machine)
        elif verdict == "suspended":
            if record.state is not MachineState.SUSPENDED:
                record.cpu_before = record.cpu_seconds
                record.memory, record.committed = str(machines.layout.memory(record.machine)), False
                record.enter(MachineState.SUSPENDED)
                record.save(machines.layout)
        else:
            machines.layout.memory(record.machine).unlink(missing_ok=True)
            machines.stopped(machine, *verdict)
    kept = {machine.record.body for machine in adopted}
    wanted = expected(machines, kept=kept)
    await machines.lanes.run("settle", lambda: _sweep_all(machines, wanted), deadline=_PATIENCE)
    for machine in adopted:
        await _adopt(machines, machine)
    for machine in again:
        machine.record.enter(MachineState.QUEUED)
        machines.enqueue(machine)
    machines.pool.open()


def _judge(machines: Machines, record: Record, domain: DomainState | None) -> str | tuple[StopReason, str]:
    """ "adopt", "again" (start it once more), "suspended", or why it has stopped. Reads, but changes nothing."""
    memory = _is_whole(machines.layout.memory(record.machine))
    if record.state is MachineState.SUSPENDED or (
        record.state is MachineState.SUSPENDING and domain is None and memory
    ):
        return "suspended" if memory else (StopReason.RESUME_FAILED, "the image of its memory is gone, or damaged")
    resuming = record.origin is Origin.RESUME and not record.committed
    if resuming and record.state not in RUNNING and memory:
        return "again" if record.boots < MAX_BOOTS and record.boot_id == boot_id() else "suspended"
    if record.boot_id != boot_id():
        return StopReason.HOST_RESTARTED, "the host was restarted"
    if record.state in (*RUNNING, MachineState.SUSPENDING):
        if domain is None:
            return StopReason.HYPERVISOR_DIED, "it ended while the node was down"
        if domain.running or record.state is MachineState.SUSPENDING:
            return "adopt"
        return StopReason.DISK_FULL, "it was paused, as for want of room on the host's disk, while the node was down"
    if record.origin in (Origin.RESUME, Origin.FORK):
        if domain is not None and record.committed:
            return "adopt"
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
    except (OSError, ValueError):
        return False
    return True


async def _adopt(machines: Machines, machine: Machine) -> None:
    record = machine.record
    name = machines.names.of(record.body)
    log.info("machine %s runs on", record.machine)
    machines.layout.memory(record.machine).unlink(missing_ok=True)

    def look() -> list[str]:
        # A fork may have been cut between the snapshot and the record of it
        layers = layers_of(domains.domain_disk(machines.conn, name))
        state = domains.domain_state(machines.conn, name)
        if state is not None and not state.running:
            domains.domain_resume(machines.conn, name)
        return [path.stem for path in layers[:-1]]

    try:
        record.disks = await machines.lanes.run(name, look, deadline=_PATIENCE)
    except VmError as error:
        log.warning("machine %s: %s", record.machine, error)
    if record.state not in RUNNING:
        record.enter(MachineState.READY)
    record.fresh = False
    record.save(machines.layout)
    machines.adopt(machine)


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
            log.error("machine %s is left alone: %s", place.name, error)
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
    path.write_text(json.dumps(data))


# -- sweeping ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stray:
    """Something of ours on the host that nobody needs: `kind` says what, `name` which."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Expected:
    """What there may be on the host: bodies, layers, images in memory by their bodies, and suspended machines."""

    bodies: frozenset[str]
    layers: frozenset[str]
    images: frozenset[str]
    memories: frozenset[str]


def expected(machines: Machines, *, kept: set[str] | None = None) -> Expected:
    """What records, pool and templates name now; `kept` instead of the bodies that may run. In the event loop."""
    known = machines.known.values()
    bodies = machines.bodies() if kept is None else kept
    return Expected(
        bodies=frozenset(bodies),
        layers=frozenset(machines.layers()),
        images=frozenset({m.record.body for m in known if m.record.origin is Origin.FORK} | bodies),
        memories=frozenset(m.record.machine for m in known if _may_have_memory(m)),
    )


def strays(machines: Machines, wanted: Expected) -> list[Stray]:
    """What is on the host now and is not expected there. Blocks."""
    names = {machines.names.of(body) for body in wanted.bodies}
    layout = machines.layout
    found = [
        Stray("domain", domain.name)
        for domain in domains.domain_list(machines.conn, machines.names.prefix)
        if domain.name not in names
    ]
    found += [Stray("namespace", name) for name in namespace_names(machines.names.prefix) if name not in names]
    found += [Stray("socket", str(path)) for path in layout.agents.iterdir() if path.stem not in wanted.bodies]
    # A tap in use is in its machine's namespace
    found += [Stray("tap", name) for name in tap_names(machines.names.tap_prefix)]
    groups = machines.starter.groups
    found += [Stray("group", name) for name in (groups.members() if groups else ()) if name not in wanted.bodies]
    logs = (layout.libvirt / "log" / "qemu").glob(f"{machines.names.prefix}*.log")
    found += [Stray("log", str(path)) for path in logs if path.stem not in names]
    found += [Stray("image", str(path)) for path in machines.scratch.glob("*") if path.stem not in wanted.images]
    found += [Stray("layer", str(path)) for path in layout.disks.iterdir() if path.stem not in wanted.layers]
    saved = layout.machines.glob("*/memory.*")
    found += [Stray("memory", str(path)) for path in saved if path.parent.name not in wanted.memories]
    return found


def _may_have_memory(machine: Machine) -> bool:
    return machine.record.state is not MachineState.STOPPED and not machine.record.committed


def remove(machines: Machines, stray: Stray) -> None:
    """Remove it. Repeatable; blocks."""
    log.info("removing the %s %s: it is nobody's", stray.kind, stray.name)
    if stray.kind == "domain":
        domains.domain_destroy(machines.conn, stray.name)
    elif stray.kind == "namespace":
        namespace_remove(stray.name)
    elif stray.kind == "tap":
        tap_remove(stray.name)
    elif stray.kind == "group":
        if machines.starter.groups is not None:
            machines.starter.groups.release(stray.name)
    else:
        Path(stray.name).unlink(missing_ok=True)


def _sweep_all(machines: Machines, wanted: Expected) -> None:
    for stray in strays(machines, wanted):
        remove(machines, stray)
    for path in machines.layout.machines.glob("*/*.new"):
        path.unlink(missing_ok=True)


async def sweep_for_ever(machines: Machines) -> None:
    """Look again and again for what is nobody's, and for machines whose end nobody told of."""
    suspected: set[Stray] = set()
    missing: set[str] = set()
    while True:
        await asyncio.sleep(SWEEP_EVERY)
        try:
            found = set(
                await machines.lanes.run("settle", partial(strays, machines, expected(machines)), deadline=_PATIENCE)
            )
            # Twice: between two looks something may just be coming or going
            for stray in found & suspected:
                await machines.lanes.run("settle", partial(remove, machines, stray), deadline=_PATIENCE)
            suspected = found - suspected
            missing = await _look_for_missing(machines, missing)
        except (VmError, OSError) as error:
            log.warning("could not look for leftovers: %s", error)


async def _look_for_missing(machines: Machines, missing: set[str]) -> set[str]:
    found = await machines.lanes.run(
        "settle", lambda: domains.domain_list(machines.conn, machines.names.prefix), deadline=_PATIENCE
    )
    there = {machines.names.body(domain.name) for domain in found}
    gone = {m.record.body for m in machines.known.values() if m.record.state in RUNNING and m.ending is None} - there
    for machine in list(machines.known.values()):
        if machine.record.body in gone & missing:
            machines.vanished(machine)
    return gone
