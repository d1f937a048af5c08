"""The calls about the machine as a whole: who it is, what time it is, how full it is, and its end."""

from __future__ import annotations

import asyncio
import base64
import binascii
import ctypes
import os
import sys
import time
from collections.abc import Callable

from vm.guest.agent.calls import Call, Methods
from vm.guest.agent.errors import Refusal
from vm.guest.agent.mounts import leave_clean
from vm.guest.agent.settings import Settings
from vm.guest.agent.trust import trust

VERSION = 1
_SKEW = 0.05  # seconds below which the clock is left alone: setting it is a jump for whoever measures
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207

_libc = ctypes.CDLL(None, use_errno=True)


class Machine:
    """Answers ping, identity, trust, clock, usage and shutdown."""

    def __init__(self, settings: Settings, environment: dict[str, str]) -> None:
        self._started = time.monotonic()
        self._real = settings.real
        self._environment = environment

    def declare(self, methods: Methods) -> None:
        """Add the calls."""
        self._methods = methods
        methods.add("ping", self.ping)
        methods.add("identity", self.identity, hostname="string", env="record?", time="number?", entropy="string?")
        methods.add("trust", self.trust, certificates="strings", hashes="strings")
        methods.add("wake", self.wake, time="number", entropy="string")
        methods.add("sync", self.sync)
        methods.add("clock", self.clock, time="number")
        methods.add("usage", self.usage)
        methods.add("shutdown", self.shutdown)

    async def ping(self, call: Call) -> object:
        """The agent's version and the seconds since it started."""
        return {"version": VERSION, "uptime": round(time.monotonic() - self._started, 3)}

    async def identity(
        self, call: Call, hostname: str, env: dict[str, str] | None, time: float | None, entropy: str | None
    ) -> None:
        """Become this sandbox and no other; repeatable."""
        if not 0 < len(hostname) <= 63 or not all(letter.isalnum() or letter == "-" for letter in hostname):
            raise Refusal("TypeError", "hostname: 1 to 63 letters, digits and hyphens", "EINVAL")
        seed = _seed(entropy or "")
        self._environment.update(env or {})
        if self._real:
            if seed[16:]:
                _add_entropy(seed[16:])
            if time is not None:
                _set_clock(time)
            # The files take a guest that was just restored longer than all the rest: they are written beside the
            # answer, and no call begins before those are that tell it from others
            loop = asyncio.get_running_loop()
            named = loop.run_in_executor(None, _attempt, _write_name, hostname.encode(), seed)
            self._methods.hold(named)
            # A process takes longer to start than this does to be written
            named.add_done_callback(lambda _done: loop.run_in_executor(None, _attempt, _write_hosts, hostname.encode()))

    async def wake(self, call: Call, time: float, entropy: str) -> None:
        """Go on after a suspend: with other random numbers than any copy of this memory would have, and the time."""
        if self._real:
            _add_entropy(_seed(entropy))
            _set_clock(time)

    async def trust(self, call: Call, certificates: list[str], hashes: list[str]) -> None:
        """Trust these certificate authorities beside the distribution's, and no others."""
        if len(hashes) != len(certificates) or not all(name.isalnum() for name in hashes):
            raise Refusal("TypeError", "hashes: one for each certificate", "EINVAL")
        if self._real:
            await asyncio.get_running_loop().run_in_executor(None, trust, certificates, hashes)

    async def sync(self, call: Call) -> None:
        """Write every file system's dirty pages to its disk."""
        if self._real:
            await asyncio.get_running_loop().run_in_executor(None, os.sync)

    async def clock(self, call: Call, time: float) -> object:
        """Set the clock; says how far it was off, in seconds."""
        return {"skew": _set_clock(time) if self._real else 0.0}

    async def usage(self, call: Call) -> object:
        """Memory, disk, load and processes."""
        memory = _memory()
        disk = os.statvfs("/")
        return {
            "memory_total": memory["MemTotal"],
            "memory_available": memory["MemAvailable"],
            "disk_total": disk.f_blocks * disk.f_frsize,
            "disk_free": disk.f_bavail * disk.f_frsize,
            "load": list(os.getloadavg()),
            "processes": sum(name.isdecimal() for name in os.listdir("/proc")),
        }

    async def shutdown(self, call: Call) -> None:
        """Flush every file system, and leave those of volumes clean; the node ends the machine then."""
        await self.sync(call)
        if self._real:
            await asyncio.get_running_loop().run_in_executor(None, leave_clean)


def _memory() -> dict[str, int]:
    memory = {}
    with open("/proc/meminfo") as lines:
        for line in lines:
            name, value = line.split(":", 1)
            memory[name] = int(value.split()[0]) * 1024
    return memory


def _set_clock(wanted: float) -> float:
    skew = wanted - time.time()
    if abs(skew) >= _SKEW:
        time.clock_settime(time.CLOCK_REALTIME, wanted)
    return round(skew, 6)


def _seed(entropy: str) -> bytes:
    try:
        return base64.b64decode(entropy, validate=True)
    except binascii.Error as error:
        raise Refusal("TypeError", "entropy: not base64", "EINVAL") from error


def _add_entropy(seed: bytes) -> None:
    # struct rand_pool_info: bits of entropy, size of the buffer, the buffer
    block = (8 * len(seed)).to_bytes(4, "little") + len(seed).to_bytes(4, "little") + seed
    pool = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        for request, argument in ((_RNDADDENTROPY, block), (_RNDRESEEDCRNG, None)):
            # A kernel that did not take it would go on with the numbers of every other clone
            if _libc.ioctl(pool, request, argument) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "/dev/urandom")
    finally:
        os.close(pool)


def _attempt(write: Callable[..., None], *args: bytes) -> None:
    try:
        write(*args)
    except OSError as error:
        # A disk without room must not keep its owner from his machine
        print(f"atoll-agent: its name could not be written: {error}", file=sys.stderr, flush=True)


def _write_name(hostname: bytes, seed: bytes) -> None:
    _libc.sethostname(hostname, len(hostname))
    _write("/etc/hostname", hostname + b"\n")
    if len(seed) >= 16:
        # Bytes of its own, not those that went to the kernel: everybody may read this file
        _write("/etc/machine-id", seed[:16].hex().encode() + b"\n")


def _write_hosts(hostname: bytes) -> None:
    _write("/etc/hosts", _hosts(hostname))


def _hosts(hostname: bytes) -> bytes:
    """/etc/hosts with this name; what else somebody wrote there stays."""
    try:
        file = os.open("/etc/hosts", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        lines = [b"127.0.0.1\tlocalhost", b"::1\tlocalhost ip6-localhost ip6-loopback"]
    else:
        try:
            lines = os.read(file, 1_048_576).splitlines()
        finally:
            os.close(file)
    # sudo looks its host up: without a line of its own that would wait for a resolver
    return b"\n".join([*(line for line in lines if not line.startswith(b"127.0.1.1")), b"127.0.1.1\t" + hostname, b""])


def _write(path: str, content: bytes) -> None:
    # In place: a guest that was just restored has run none of this yet, and each step of it is slow the first time
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if os.fstat(file).st_size > len(content):
            os.ftruncate(file, 0)
        os.write(file, content)
    finally:
        os.close(file)
