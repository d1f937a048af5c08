"""The machines that a node knows, what state each is in, and whoever wants to know of changes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from functools import partial
from secrets import token_hex

from vm.api import Identity, MachineId, MachineInfo, MachineSpec, MachineState, Secret, StopReason
from vm.errors import HypervisorError, MachineGone
from vm.host.kvm import boot_id
from vm.node.doors import Doors
from vm.node.keeper import Machine, disk_bytes
from vm.node.records import Record
from vm.node.scribe import Scribe
from vm.storage.layout import LayerId, Layout

log = logging.getLogger("atoll.node")

_SUBSCRIBER_ROOM = 1000
RUNNING = (MachineState.READY, MachineState.LOST)
WITHOUT_DOMAIN = (MachineState.STOPPED, MachineState.SUSPENDED)
_SETTLED = (MachineState.READY, MachineState.STOPPED, MachineState.SUSPENDED)
_UNREADABLE = "the node cannot read its record; its disk is kept as it lies, and the node's log says more"


class Roster:
    """Every change of a machine's state goes through here: written down first, told second.

    Who is in the node sees a change at once; whoever is outside is told, or answered, once it is on the disk.

    `shared` says which layers count for no machine.
    """

    def __init__(self, layout: Layout, doors: Doors, scribe: Scribe, shared: Callable[[], Set[LayerId]]) -> None:
        self._layout = layout
        self._scribe = scribe
        self._doors = doors
        self._shared = shared
        self.known: dict[MachineId, Machine] = {}
        self.queue: list[Machine] = []
        self.boot_id = boot_id()
        self._unsaved: set[MachineId] = set()
        self._unreadable: set[MachineId] = set()
        self._subscribers: set[asyncio.Queue[MachineInfo | None]] = set()

    # -- who is there

    def get(self, machine: MachineId) -> Machine:
        """The machine of that id. MachineGone."""
        try:
            return self.known[machine]
        except KeyError:
            raise MachineGone(f"no machine {machine} here") from None

    def with_memory(self) -> Sequence[Machine]:
        """Those that have memory of the host's, or are about to."""
        # Those that wait for their turn have none yet: whether there is room for them is asked again when it comes
        without = (*WITHOUT_DOMAIN, MachineState.QUEUED)
        return [machine for machine in self.known.values() if machine.record.state not in without]

    def info(self, machine: Machine) -> MachineInfo:
        """The machine as the world sees it."""
        record = machine.record
        wanted = record.state is not MachineState.STOPPED and not self._doors.may_open(record)
        return record.info(self.queue.index(machine) + 1 if machine in self.queue else 0, policy_wanted=wanted)

    async def wait(self, machine: MachineId, timeout: float) -> MachineInfo:
        """See vm.api.Node.machine_wait."""
        known = self.get(machine)
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while known.record.state not in _SETTLED:
                    await known.changed.wait()
        await self._scribe.written()
        return self.info(known)

    def require_wanted(self, machine: Machine) -> None:
        """Whoever asked for it may have been overtaken by somebody who stopped it: MachineGone."""
        record = machine.record
        if self.known.get(record.machine) is not machine or record.state is not MachineState.QUEUED or machine.ending:
            raise MachineGone(f"machine {record.machine} was stopped meanwhile")

    def require_running(self, machine: Machine) -> None:
        """MachineGone unless it runs."""
        if machine.record.state not in RUNNING or machine.ending is not None:
            raise MachineGone(f"machine {machine.record.machine} is {machine.record.state}")

    def record(self, spec: MachineSpec, image: str, secrets: Sequence[Secret]) -> Record:
        """A new machine's record; its secrets are kept by its door alone."""
        self._doors.entrust(spec.machine, secrets)
        return Record(
            spec=spec,
            image=image,
            state=MachineState.QUEUED,
            since=time.time(),
            boot_id=self.boot_id,
            body=spec.machine,
            has_secrets=bool(secrets),
        )

    def unknow(self, machine: Machine, before: Machine | None) -> None:
        """Take back that the machine is known, whose start could not even begin; `before` is what it was."""
        name = machine.record.machine
        stopped = machine.record.state is MachineState.STOPPED or machine.ending is not None
        if self.known.get(name) is not machine or stopped:
            return  # it was stopped meanwhile, and is known as that
        self._doors.distrust(name)
        if before is not None:
            self.known[name] = before
        else:
            del self.known[name]

    # -- what nobody can read

    def know_unreadable(self, machine: MachineId) -> None:
        """There is something of this machine that nobody can read: it is STOPPED, and stays as it lies."""
        spec = MachineSpec(machine, 0, 0, 0, Identity("unreadable"))
        record = Record(spec, "", MachineState.STOPPED, time.time(), self.boot_id, token_hex(16))
        record.stop_reason, record.detail = StopReason.RECORD_UNREADABLE, _UNREADABLE
        self._unreadable.add(machine)
        self.known[machine] = Machine(record)

    def require_readable(self, machine: MachineId) -> None:
        """HypervisorError for one whose record nobody can read."""
        if machine in self._unreadable:
            raise HypervisorError(_UNREADABLE)

    # -- states

    def enter(
        self, machine: Machine, state: MachineState, *, reason: StopReason | None = None, detail: str = ""
    ) -> None:
        """Put the machine into a state, for good and for all to see."""
        machine.record.enter(state, reason=reason, detail=detail)
        if state is MachineState.SUSPENDED:
            self.measure_disk(machine.record)  # its memory lies there as well from here on
        self.save(machine.record)
        self.announce(machine)

    def observed(self, machine: Machine, state: MachineState, detail: str) -> None:
        """Enter what a look at the machine has found."""
        self.enter(machine, state, detail=detail)

    def stopped(self, machine: Machine, reason: StopReason, detail: str) -> None:
        """Record that a machine has stopped."""
        record = machine.record
        record.cpu_before = record.cpu_seconds
        record.memory, record.attached = "", []
        self._doors.distrust(record.machine)
        self.measure_disk(record)
        self.enter(machine, MachineState.STOPPED, reason=reason, detail=detail)

    def measure_disk(self, record: Record) -> None:
        """Bring what it takes on the host's disk up to date."""
        record.disk_bytes = disk_bytes(self._layout, record, shared=self._shared())

    def save(self, record: Record) -> None:
        """Have the record written down as it is now; what cannot be written now is written by `save_again`."""
        if record.machine not in self._unreadable:
            self._scribe.write(record).add_done_callback(partial(self._saved, record.machine))

    def _saved(self, machine: MachineId, done: asyncio.Future[None]) -> None:
        error = None if done.cancelled() else done.exception()
        if error is None:
            self._unsaved.discard(machine)
        else:
            # The machine goes on without: a full disk must not take the node with it, and it is tried again and again
            self._unsaved.add(machine)
            log.error("machine %s: its record could not be written: %s", machine, error)

    async def save_first(self, record: Record) -> None:
        """`save` it before whatever is done next; where it cannot be written, that is done all the same."""
        self.save(record)
        await self._scribe.written()

    async def require_saved(self, record: Record) -> None:
        """Write it down. HostFull or OSError if that cannot be done: it is not tried again then."""
        await self._scribe.write(record)

    async def written(self) -> None:
        """Wait until all changes so far are on the disk: whoever is told of them may act on them."""
        await self._scribe.written()

    def save_again(self) -> None:
        """Write down what could not be written before."""
        for name in list(self._unsaved):
            if name in self.known:
                self.save(self.known[name].record)
            else:
                self._unsaved.discard(name)

    # -- whoever wants to know

    @contextmanager
    def subscription(self) -> Iterator[asyncio.Queue[MachineInfo | None]]:
        """Every change from now on; None when the node ends, or when the reader falls too far behind."""
        changes: asyncio.Queue[MachineInfo | None] = asyncio.Queue(_SUBSCRIBER_ROOM)
        self._subscribers.add(changes)
        try:
            yield changes
        finally:
            self._subscribers.discard(changes)

    def announce(self, machine: Machine) -> None:
        """Tell everybody how the machine is now."""
        machine.changed.set()
        machine.changed = asyncio.Event()
        self._scribe.then(partial(self._tell, self.info(machine)))

    def _tell(self, info: MachineInfo) -> None:
        for subscriber in list(self._subscribers):
            try:
                subscriber.put_nowait(info)
            except asyncio.QueueFull:
                # It misses something either way; ended, it knows that, and lists everything when it comes back
                self._subscribers.discard(subscriber)
                subscriber.get_nowait()
                subscriber.put_nowait(None)

    def close(self) -> None:
        """Tell everybody that nothing more is told."""
        for subscriber in self._subscribers:
            with suppress(asyncio.QueueFull):
                subscriber.put_nowait(None)
