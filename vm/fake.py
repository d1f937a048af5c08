"""A node in memory whose machines have a real agent, run natively; failures on demand.

For tests of the rings above: state, order and errors are as with a real node, calls to a guest are answered by the
guest's own agent program over the guest's own channel, and booting takes `boot_delay` seconds instead of two. A
suspended machine's processes stand still; a fork has the files of the original, but none of its processes.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from vm.api import (
    ByteStream,
    EgressPolicy,
    HostInfo,
    MachineId,
    MachineInfo,
    MachineSpec,
    MachineState,
    Origin,
    PassageBatch,
    PassageEntry,
    Secret,
    StopReason,
    VolumeId,
    VolumeInfo,
    VolumeMount,
    policy_digest,
)
from vm.egress.journal import Passage
from vm.egress.policy import Policy
from vm.egress.secrets import require_sane
from vm.errors import HypervisorError, MachineExists, MachineFailed, MachineGone, StreamReset, VmError, VolumeBusy
from vm.fake_volumes import FakeVolumes
from vm.guest.calls import call
from vm.guest.channel import Channel

_CHECKOUT = Path(__file__).resolve().parents[1]
_TURN = 0.005  # seconds between looks: waiting must work from any event loop, so nothing here belongs to one
_LIVE = (
    MachineState.QUEUED,
    MachineState.STARTING,
    MachineState.READY,
    MachineState.LOST,
    MachineState.SUSPENDING,
    MachineState.SUSPENDED,
)


class _Guest:
    """The agent of one machine: a process on the host, in a scratch home of its own."""

    def __init__(self, spec: MachineSpec, home: Path) -> None:
        self._spec = spec
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._channel: Channel | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        self._home.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vm.guest.agent", "--fd", str(theirs.fileno()), "--home", str(self._home)],
                cwd=self._home,
                env={**os.environ, "PYTHONPATH": str(_CHECKOUT)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._socket = ours

    async def open(self) -> ByteStream:
        """A new stream. The link belongs to one event loop; another loop takes it over, which resets its streams."""
        loop = asyncio.get_running_loop()
        if self._socket is None:
            self.start()
        if self._channel is None or self._loop is not loop:
            if self._channel is not None and self._loop is not None and not self._loop.is_closed():
                # its keeper would fight with the new one for the link
                asyncio.run_coroutine_threadsafe(self._channel.close(), self._loop)
            self._channel, self._loop = Channel(self._connect), loop
            identity = {"hostname": self._spec.identity.hostname, "env": dict(self._spec.identity.env)}
            await call(await self._channel.open(timeout=20), "identity", {**identity, "time": time.time()})
        return await self._channel.open(timeout=20)

    async def _connect(self) -> socket.socket:
        if self._socket is None:
            raise OSError(0, "the agent is gone")
        return self._socket.dup()

    async def detach(self) -> None:
        """Break every stream, as when the machine is gone; the process ends with its socket."""
        await self._break_streams()
        self.kill()

    async def freeze(self) -> None:
        """Break every stream and let nothing run on: a machine whose memory was saved."""
        await self._break_streams()
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """What was frozen goes on."""
        self._signal(signal.SIGCONT)

    async def _break_streams(self) -> None:
        if self._channel is not None and self._loop is asyncio.get_running_loop():
            await self._channel.close()
        self._channel = None

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        for pid in _descendants(self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            self._socket = None
        if self._process is not None:
            # What was frozen below it would never hear that it is gone
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


def _descendants(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for parent in found:
        with suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                found += map(int, Path(f"/proc/{parent}/task/{task}/children").read_text().split())
    return found


def _require_policy(policy: EgressPolicy, secrets: Sequence[Secret]) -> None:
    try:
        Policy(policy.allow_net, policy.deny)
        require_sane(secrets)
    except ValueError as error:
        raise HypervisorError(f"the egress policy: {error}") from error


@dataclass(slots=True)
class _Machine:
    spec: MachineSpec
    info: MachineInfo
    guest: _Guest
    secrets: tuple[Secret, ...] = ()
    began: float = field(default_factory=time.monotonic)


class FakeNode:
    """The Node protocol of vm.api in memory. May be shared between event loops; `close` ends its processes.

    `boot_delay` is what a boot takes, `boot_places` how many boot at a time; both may be changed at any time.
    """

    def __init__(self, *, boot_delay: float = 0.0, boot_places: int = 2, scratch: Path | None = None) -> None:
        self.boot_delay = boot_delay
        self.boot_places = boot_places
        self._own_scratch = scratch is None
        self._scratch = scratch or Path(tempfile.mkdtemp(prefix="atoll-fake-"))
        self._machines: dict[MachineId, _Machine] = {}
        self._failures: dict[str, deque[VmError]] = {}
        self._history: list[MachineInfo] = []
        self._down: VmError | None = None
        self._passages: list[PassageEntry] = []
        self.registries: tuple[str, ...] = ()
        self.data_tag = secrets.token_hex(16)
        self.volumes = FakeVolumes(self._scratch, self._mounts)

    # -- failures on demand

    def fail_next(self, verb: str, error: VmError) -> None:
        """The next call of `verb` (a method's name, such as "machine_start") raises `error`; may be queued up."""
        self._failures.setdefault(verb, deque()).append(error)

    def go_down(self, error: VmError | None) -> None:
        """Every call raises `error` from now on, as with a node that is down; None brings it back."""
        self._down = error

    def fail_boot(self, machine: MachineId, reason: StopReason = StopReason.BOOT_FAILED, detail: str = "") -> None:
        """End a machine that is QUEUED or STARTING."""
        self._set(machine, MachineState.STOPPED, stop_reason=reason, detail=detail, queue_position=0)

    def crash(self, machine: MachineId, reason: StopReason = StopReason.GUEST_CRASHED, detail: str = "") -> None:
        """The machine stops by itself; its streams break off."""
        self._machines[machine].guest.kill()
        self._set(machine, MachineState.STOPPED, stop_reason=reason, detail=detail)

    def lose(self, machine: MachineId) -> None:
        """The machine runs but its agent no longer answers, until `find`."""
        self._set(machine, MachineState.LOST)

    def find(self, machine: MachineId) -> None:
        """A lost machine answers again."""
        self._set(machine, MachineState.READY)

    def policy(self, machine: MachineId) -> EgressPolicy:
        """What the machine may reach now."""
        return self._machines[machine].spec.policy

    def passed(self, machine: MachineId, *passages: Passage) -> None:
        """The machine had these connections."""
        for passage in passages:
            self._passages.append(PassageEntry(len(self._passages) + 1, machine, passage))

    def secrets(self, machine: MachineId) -> tuple[Secret, ...]:
        """The secrets that the node holds for the machine now."""
        return self._machines[machine].secrets

    def forget_secrets(self) -> None:
        """The node was killed and started again: it knows no values, and machines that had some want a policy."""
        for name, machine in self._machines.items():
            if machine.secrets:
                machine.secrets = ()
                wanted = machine.info.state is not MachineState.STOPPED
                self._set(name, machine.info.state, policy_wanted=wanted)

    def disk(self, machine: MachineId) -> Path:
        """The directory that stands for the machine's home; kept until `machine_forget`."""
        return self._machines[machine].guest._home

    def close(self) -> None:
        """End every agent and remove what they wrote."""
        for machine in self._machines.values():
            machine.guest.kill()
        self._machines.clear()
        if self._own_scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)

    # -- the protocol

    async def machine_start(self, spec: MachineSpec, *, secrets: Sequence[Secret] = ()) -> MachineInfo:
        """See vm.api.Node."""
        self._enter("machine_start")
        _require_policy(spec.policy, secrets)
        known = self._machines.get(spec.machine)
        if known is not None and known.info.state in _LIVE:
            raise MachineExists(f"machine {spec.machine} is {known.info.state}")
        self.volumes.require_free(spec.machine, spec.volumes)
        own = known is not None and self.disk(spec.machine).exists() and not self.volumes.writable(spec.root)
        if spec.root and not own:
            self.volumes.require_root(spec.machine, spec.root)
        info = MachineInfo(
            machine=spec.machine,
            state=MachineState.QUEUED,
            memory_mib=spec.memory_mib,
            vcpus=spec.vcpus,
            since=time.time(),
            origin=Origin.COLD,
            policy=policy_digest(spec.policy),
        )
        self._machines[spec.machine] = _Machine(spec, info, _Guest(spec, self._home(spec)), tuple(secrets))
        self._history.append(info)
        self._advance()
        return info

    async def machine_wait(self, machine: MachineId, *, timeout: float) -> MachineInfo:
        """See vm.api.Node."""
        self._enter("machine_wait")
        until = time.monotonic() + timeout
        while True:
            info = self._get(machine).info
            if (
                info.state in (MachineState.READY, MachineState.SUSPENDED, MachineState.STOPPED)
                or time.monotonic() >= until
            ):
                return info
            await asyncio.sleep(_TURN)

    async def machine_get(self, machine: MachineId) -> MachineInfo:
        """See vm.api.Node."""
        self._enter("machine_get")
        return self._get(machine).info

    async def machine_list(self) -> list[MachineInfo]:
        """See vm.api.Node."""
        self._enter("machine_list")
        self._advance()
        return [machine.info for machine in self._machines.values()]

    async def machine_stop(self, machine: MachineId, *, detail: str = "") -> MachineInfo:
        """See vm.api.Node."""
        self._enter("machine_stop")
        known = self._get(machine)
        if known.info.state in _LIVE:
            changes = {
                "stop_reason": StopReason.REQUESTED,
                "detail": detail,
                "queue_position": 0,
                "policy_wanted": False,
            }
            self._set(machine, MachineState.STOPPED, **changes)
            await known.guest.detach()
            self._advance()
        elif not known.info.detail.startswith(detail):
            self._set(machine, MachineState.STOPPED, detail=detail)
        return known.info

    async def machine_suspend(self, machine: MachineId) -> MachineInfo:
        """See vm.api.Node."""
        self._enter("machine_suspend")
        known = self._get(machine)
        if known.info.state is MachineState.SUSPENDED:
            return known.info
        if known.info.state not in (MachineState.READY, MachineState.LOST):
            raise MachineGone(f"machine {machine} is {known.info.state}")
        self._set(machine, MachineState.SUSPENDING)
        await known.guest.freeze()
        if self._get(machine).info.state is not MachineState.SUSPENDING:
            raise MachineGone(f"machine {machine} is {known.info.state}")
        self._set(machine, MachineState.SUSPENDED)
        return known.info

    async def machine_resume(self, machine: MachineId) -> MachineInfo:
        """See vm.api.Node."""
        self._enter("machine_resume")
        known = self._get(machine)
        if known.info.state is MachineState.STOPPED:
            raise MachineGone(f"machine {machine} is {known.info.state}")
        if known.info.state is MachineState.SUSPENDED:
            known.guest.thaw()
            self._set(machine, MachineState.QUEUED, origin=Origin.RESUME)
            self._advance()
        return known.info

    async def machine_fork(
        self, source: MachineId, spec: MachineSpec, *, secrets: Sequence[Secret] = ()
    ) -> MachineInfo:
        """See vm.api.Node."""
        self._enter("machine_fork")
        original = self._get(source)
        if original.info.state is not MachineState.READY:
            raise MachineGone(f"machine {source} is {original.info.state}")
        if [mount for mount in spec.volumes if mount not in original.spec.volumes or not mount.read_only]:
            raise VolumeBusy("a fork begins with no volumes but the snapshots that its original has")
        same = replace(spec, memory_mib=original.spec.memory_mib, vcpus=original.spec.vcpus, root="")
        info = await self.machine_start(same, secrets=secrets)
        if self.disk(source).exists():
            shutil.copytree(self.disk(source), self.disk(spec.machine), symlinks=True, dirs_exist_ok=True)
        self._machines[spec.machine].info = replace(info, origin=Origin.FORK)
        return self._get(spec.machine).info

    async def machine_policy(
        self, machine: MachineId, policy: EgressPolicy, *, secrets: Sequence[Secret] = ()
    ) -> MachineInfo:
        """See vm.api.Node."""
        self._enter("machine_policy")
        _require_policy(policy, secrets)
        known = self._get(machine)
        known.spec, known.secrets = replace(known.spec, policy=policy), tuple(secrets)
        known.info = replace(known.info, policy=policy_digest(policy), policy_wanted=False)
        return known.info

    async def egress_passages(self, cursor: str, limit: int) -> PassageBatch:
        """See vm.api.Node."""
        self._enter("egress_passages")
        if not 1 <= limit <= 2000:
            raise HypervisorError("between 1 and 2000 connections may be asked for at a time")
        number = cursor.removeprefix("fake:")
        after = int(number) if cursor.startswith("fake:") and number.isdecimal() else 0
        found = [entry for entry in self._passages if entry.number > after][:limit]
        return PassageBatch(f"fake:{found[-1].number if found else after}", found)

    async def machine_forget(self, machine: MachineId) -> None:
        """See vm.api.Node."""
        self._enter("machine_forget")
        known = self._machines.get(machine)
        if known is None:
            return
        if known.info.state in _LIVE:
            raise MachineExists(f"machine {machine} is {known.info.state}")
        known.guest.kill()
        if not self.volumes.writable(known.spec.root):
            shutil.rmtree(self.disk(machine), ignore_errors=True)
        del self._machines[machine]

    async def volume_create(self, volume: VolumeId, *, capacity: int, source: str = "") -> VolumeInfo:
        """See vm.api.Node."""
        self._enter("volume_create")
        return self.volumes.create(volume, capacity, source)

    async def volume_snapshot(self, volume: VolumeId, snapshot: VolumeId) -> VolumeInfo:
        """See vm.api.Node."""
        self._enter("volume_snapshot")
        return self.volumes.snapshot(volume, snapshot)

    async def volume_grow(self, volume: VolumeId, *, capacity: int) -> VolumeInfo:
        """See vm.api.Node."""
        self._enter("volume_grow")
        return self.volumes.grow(volume, capacity)

    async def machine_snapshot(self, machine: MachineId, snapshot: VolumeId, *, memory: bool = False) -> VolumeInfo:
        """See vm.api.Node."""
        self._enter("machine_snapshot")
        known = self._get(machine)
        if memory and known.info.state not in (MachineState.READY, MachineState.LOST):
            raise MachineGone(f"machine {machine} is {known.info.state}")
        if memory and (known.spec.volumes or self.volumes.writable(known.spec.root)):
            raise VolumeBusy("its memory knows volumes, which are not in a snapshot: detach them first")
        coming = (MachineState.QUEUED, MachineState.STARTING, MachineState.SUSPENDING)
        if known.info.state in coming or (known.info.state is MachineState.STOPPED and not self.disk(machine).exists()):
            raise MachineGone(f"machine {machine} is {known.info.state}")
        if self.volumes.writable(known.spec.root):
            return self.volumes.snapshot(known.spec.root, snapshot)
        return self.volumes.snapshot_of(self.disk(machine), snapshot)

    async def machine_restore(self, machine: MachineId, snapshot: VolumeId) -> None:
        """See vm.api.Node."""
        self._enter("machine_restore")
        known = self._get(machine)
        if known.info.state is not MachineState.STOPPED:
            raise VolumeBusy(f"machine {machine} is {known.info.state}: it has to be stopped for that")
        if self.volumes.writable(snapshot):
            raise VolumeBusy(f"volume {snapshot} is no snapshot: it may change at any time")
        self.volumes.require_root(machine, snapshot)
        shutil.rmtree(self.disk(machine), ignore_errors=True)
        shutil.copytree(self.volumes.content(snapshot), self.disk(machine), symlinks=True)

    async def volume_list(self) -> list[VolumeInfo]:
        """See vm.api.Node."""
        self._enter("volume_list")
        return self.volumes.list()

    async def volume_attach(self, machine: MachineId, mount: VolumeMount) -> None:
        """See vm.api.Node."""
        self._enter("volume_attach")
        known = self._get(machine)
        if known.info.state not in (MachineState.READY, MachineState.LOST):
            raise MachineGone(f"machine {machine} is {known.info.state}")
        self.volumes.require_free(machine, [mount])
        others = [one for one in known.spec.volumes if one.volume == mount.volume]
        if others and others != [mount]:
            raise VolumeBusy(f"the machine has it already, at {others[0].path}")
        self.volumes.bring(mount)
        if not others:
            known.spec = replace(known.spec, volumes=(*known.spec.volumes, mount))

    async def volume_detach(self, machine: MachineId, volume: VolumeId) -> None:
        """See vm.api.Node."""
        self._enter("volume_detach")
        known = self._machines.get(machine)
        if known is None or known.info.state is MachineState.STOPPED:
            return
        if known.info.state not in (MachineState.READY, MachineState.LOST):
            raise MachineGone(f"machine {machine} is {known.info.state}")
        self.volumes.take(one for one in known.spec.volumes if one.volume == volume)
        kept = tuple(one for one in known.spec.volumes if one.volume != volume)
        known.spec = replace(known.spec, volumes=kept)

    async def volume_remove(self, volume: VolumeId) -> None:
        """See vm.api.Node."""
        self._enter("volume_remove")
        self.volumes.remove(volume)

    async def host_info(self) -> HostInfo:
        """See vm.api.Node."""
        self._enter("host_info")
        disk = shutil.disk_usage(self._scratch)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return HostInfo(
            name="fake",
            accelerator="tcg",
            cpus=os.cpu_count() or 1,
            memory_total=memory,
            memory_available=memory // 2,
            disk_total=disk.total,
            disk_free=disk.free,
            image="0" * 16,
            boot_id="00000000-0000-0000-0000-000000000000",
            registries=self.registries,
            data_tag=self.data_tag,
        )

    async def stream_open(self, machine: MachineId) -> ByteStream:
        """See vm.api.Node."""
        self._enter("stream_open")
        known = self._get(machine)
        for _ in range(40):
            if known.info.state is not MachineState.LOST:
                break
            await asyncio.sleep(_TURN)
        if known.info.state is MachineState.LOST:
            raise StreamReset("the machine's agent does not answer")
        if known.info.state is not MachineState.READY:
            raise MachineGone(f"machine {machine} is {known.info.state}")
        return await known.guest.open()

    async def events(self) -> AsyncIterator[MachineInfo]:
        """See vm.api.Node."""
        self._enter("events")
        seen = len(self._history)
        while True:
            if self._down is not None:
                raise self._down
            self._advance()
            while seen < len(self._history):
                seen += 1
                yield self._history[seen - 1]
            await asyncio.sleep(_TURN)

    # -- inside

    def _home(self, spec: MachineSpec) -> Path:
        """Where its files are: a volume's own, or a directory of its own, which begins as what a snapshot holds."""
        if spec.root and self.volumes.writable(spec.root):
            return self.volumes.content(spec.root)
        home = self._scratch / spec.machine
        if spec.root and not home.exists():
            shutil.copytree(self.volumes.content(spec.root), home, symlinks=True)
        return home

    def _mounts(self) -> dict[MachineId, Sequence[VolumeMount]]:
        live = {name: machine.spec for name, machine in self._machines.items() if machine.info.state in _LIVE}
        return {
            name: (*spec.volumes, *([VolumeMount(spec.root, "/")] if spec.root else ())) for name, spec in live.items()
        }

    def _enter(self, verb: str) -> None:
        if self._down is not None:
            raise self._down
        if self._failures.get(verb):
            raise self._failures[verb].popleft()

    def _get(self, machine: MachineId) -> _Machine:
        self._advance()
        try:
            return self._machines[machine]
        except KeyError:
            raise MachineGone(f"no machine {machine} here") from None

    def _advance(self) -> None:
        """Let time pass: boots end after `boot_delay`, and queued machines take their places."""
        now = time.monotonic()
        for name, machine in list(self._machines.items()):
            if machine.info.state is MachineState.STARTING and now - machine.began >= self.boot_delay:
                try:
                    for mount in machine.spec.volumes:
                        self.volumes.bring(mount)
                except MachineFailed as error:
                    self.fail_boot(name, detail=error.detail)
                    continue
                self._set(name, MachineState.READY, stages={"queue": 0.0, "agent": round(now - machine.began, 3)})
        for position, (name, machine) in enumerate(
            [item for item in self._machines.items() if item[1].info.state is MachineState.QUEUED]
        ):
            booting = sum(other.info.state is MachineState.STARTING for other in self._machines.values())
            if booting < self.boot_places:
                machine.began = now
                self._set(name, MachineState.STARTING, queue_position=0)
            elif machine.info.queue_position != position + 1:
                machine.info = replace(machine.info, queue_position=position + 1)
        if self.boot_delay == 0 and any(
            machine.info.state is MachineState.STARTING for machine in self._machines.values()
        ):
            self._advance()

    def _set(self, machine: MachineId, state: MachineState, **changes: object) -> None:
        known = self._machines[machine]
        if state is MachineState.STOPPED:
            self.volumes.take(known.spec.volumes)
        known.info = replace(known.info, state=state, since=time.time(), **changes)  # type: ignore[arg-type]
        self._history.append(known.info)
