"""Looks for what is on the host and belongs to no machine, clone or template any more, and removes it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vm.api import MachineState, Origin
from vm.background import spawn
from vm.errors import VmError
from vm.libvirt import domains
from vm.net.namespace import namespace_names, namespace_remove, tap_names, tap_remove
from vm.node.keeper import Machine
from vm.node.machines import Machines
from vm.node.process import qemu_kill
from vm.node.roster import RUNNING

log = logging.getLogger("atoll.node")
_COMING = (MachineState.QUEUED, MachineState.STARTING)
_ANYBODYS = ("domain", "namespace", "socket", "group", "log", "image", "layer", "memory")
PATIENCE = 60.0
EVERY = 20.0
"""Seconds between looks of a node that serves; what is nobody's in two of them in a row is removed."""


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
        layers=frozenset(machines.needed_layers()),
        images=frozenset(
            {m.record.body for m in known if m.record.origin is Origin.FORK and m.record.state in _COMING}
            | bodies
            | machines.templates.layers()
            | machines.remembering.images
        ),
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
    layers = (path for path in layout.disks.iterdir() if path.is_file() and path.stem not in wanted.layers)
    found += [Stray("layer", str(path)) for path in layers]
    saved = layout.machines.glob("*/memory.*")
    found += [Stray("memory", str(path)) for path in saved if path.parent.name not in wanted.memories]
    # While a record cannot be read, what it names is not known
    return [stray for stray in found if not (machines.layers.frozen and stray.kind in _ANYBODYS)]


def _may_have_memory(machine: Machine) -> bool:
    state = machine.record.state
    return state is MachineState.SUSPENDING or (state is not MachineState.STOPPED and not machine.record.committed)


def remove(machines: Machines, stray: Stray) -> None:
    """Remove it. Repeatable; blocks."""
    log.info("removing the %s %s: it is nobody's", stray.kind, stray.name)
    if stray.kind == "domain":
        # libvirt may still hold on to one whose start was cut short; without its process it lets go
        qemu_kill(machines.layout, stray.name)
        domains.domain_destroy(machines.conn, stray.name)
    elif stray.kind == "namespace":
        machines.doors.unmade(machines.names.body(stray.name))
        namespace_remove(stray.name)
    elif stray.kind == "tap":
        tap_remove(stray.name)
    elif stray.kind == "group":
        if machines.starter.groups is not None:
            machines.starter.groups.release(stray.name)
    else:
        Path(stray.name).unlink(missing_ok=True)


def sweep_all(machines: Machines, wanted: Expected) -> None:
    """Remove all of it at once: before a node serves, nothing is just coming or going. Blocks."""
    for stray in strays(machines, wanted):
        try:
            remove(machines, stray)
        except (VmError, OSError) as error:
            # One that cannot be removed keeps nobody from his machines: it is tried again and again
            log.warning("the %s %s could not be removed yet: %s", stray.kind, stray.name, error)
    # Half-written files, memories of before, and disks that were to be merged: what they were for is there as it was
    for path in [*machines.layout.machines.glob("*/*.new"), *machines.layout.disks.glob("*.new")]:
        path.unlink(missing_ok=True)


async def sweep_for_ever(machines: Machines) -> None:
    """Look again and again for what is nobody's, and for machines whose end nobody told of."""
    suspected: set[Stray] = set()
    missing: set[str] = set()
    shortening: asyncio.Task[None] | None = None
    while True:
        await asyncio.sleep(EVERY)
        machines.out_of_memory.look()
        machines.roster.save_again()
        try:
            found = set(
                await machines.lanes.run("settle", partial(strays, machines, expected(machines)), deadline=PATIENCE)
            )
            # Twice: between two looks something may just be coming or going
            for stray in found & suspected:
                await _remove_again(machines, stray)
            suspected = found - suspected
            missing = await _look_for_missing(machines, missing)
            if shortening is None or shortening.done():
                shortening = spawn(machines.volumes.shorten(), name="shorten")
        except (VmError, OSError) as error:
            log.warning("could not look for leftovers: %s", error)


async def _remove_again(machines: Machines, stray: Stray) -> None:
    """Remove what two looks have found, if it still is nobody's; what cannot be removed is tried at the next ones."""
    try:
        found = await machines.lanes.run("settle", partial(strays, machines, expected(machines)), deadline=PATIENCE)
        if stray in found:
            await machines.lanes.run("settle", partial(remove, machines, stray), deadline=PATIENCE)
    except (VmError, OSError) as error:
        log.warning("the %s %s could not be removed yet: %s", stray.kind, stray.name, error)


async def _look_for_missing(machines: Machines, missing: set[str]) -> set[str]:
    found = await machines.lanes.run(
        "settle", lambda: domains.domain_list(machines.conn, machines.names.prefix), deadline=PATIENCE
    )
    there = {machines.names.body(domain.name) for domain in found}
    gone = {m.record.body for m in machines.known.values() if m.record.state in RUNNING and m.ending is None} - there
    for machine in list(machines.known.values()):
        if machine.record.body in gone & missing:
            machines.ending.vanished(machine)
    return gone
