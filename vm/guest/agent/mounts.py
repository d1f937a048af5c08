"""The calls about volumes: file systems on disks that were plugged in, found by what they are called on the host.

Which there are is the kernel's to say and nobody's memory: an agent that was started anew goes on with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import glob
import os
import struct
import time

from vm.guest.agent.calls import Call, Methods
from vm.guest.agent.errors import Refusal
from vm.guest.agent.settings import Settings

MS_RDONLY, MS_NODEV = 1, 4
_COMING = 10.0  # seconds until a disk that was plugged in must be there
_LOOK = 0.01
_FROZEN = 8.0  # seconds after which nobody can mean it any more
_FIFREEZE, _FITHAW, _BLKGETSIZE64, _RESIZE = 0xC0045877, 0xC0045878, 0x80081272, 0x40086610

_libc = ctypes.CDLL(None, use_errno=True)


class Mounts:
    """Answers mount, unmount, grow, freeze and thaw."""

    def __init__(self, settings: Settings) -> None:
        self._real = settings.real
        self._frozen: list[int] = []
        self._thawing: asyncio.TimerHandle | None = None
        self._owner = (settings.uid, settings.gid)

    def declare(self, methods: Methods) -> None:
        """Add the calls."""
        methods.add("volume.mount", self.mount, serial="string", path="string", readOnly="boolean")
        methods.add("volume.unmount", self.unmount, serial="string")
        methods.add("volume.grow", self.grow, serial="string")
        methods.add("volume.freeze", self.freeze, serials="strings")
        methods.add("volume.thaw", self.thaw)

    async def mount(self, call: Call, serial: str, path: str, readOnly: bool) -> None:
        """Mount the disk's file system at `path`, which is made where it is missing. Repeatable."""
        if not path.startswith("/") or "\0" in path or not path.replace(".", "").strip("/"):
            raise Refusal("TypeError", "path: absolute, and not the root", "EINVAL")
        if self._real:
            device = await self._device(serial)
            await asyncio.get_running_loop().run_in_executor(None, _mount, device, path, readOnly, self._owner)

    async def unmount(self, call: Call, serial: str) -> None:
        """Write what is dirty and take the file system away. Refusal EBUSY while something uses it. Repeatable."""
        if self._real:
            await asyncio.get_running_loop().run_in_executor(None, _unmount, serial)

    async def grow(self, call: Call, serial: str) -> None:
        """Let a mounted file system ("": the system's) have the whole of its disk, which became larger. Repeatable."""
        if self._real:
            for device, path in _mounted(serial) if serial else [("/dev/vda", "/")]:
                await asyncio.get_running_loop().run_in_executor(None, _grow, device, path)

    async def freeze(self, call: Call, serials: list[str]) -> None:
        """Write what is dirty, and let nothing more be written to these volumes ("": the system's disk) until a thaw.

        After some seconds they thaw by themselves: whoever asked may have died.
        """
        if not self._real:
            return
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, os.sync)
        self._release()
        paths = [path for serial in serials for path in (["/"] if not serial else _paths(serial))]
        self._thawing = loop.call_later(_FROZEN, self._release)
        try:
            for path in paths:
                directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                self._frozen.append(directory)
                await loop.run_in_executor(None, fcntl.ioctl, directory, _FIFREEZE, b"\0" * 8)
        except OSError:
            self._release()
            raise

    async def thaw(self, call: Call) -> None:
        """Let what is frozen be written to again. Repeatable."""
        self._release()

    def _release(self) -> None:
        if self._thawing is not None:
            self._thawing.cancel()
            self._thawing = None
        for directory in self._frozen:
            with contextlib.suppress(OSError):  # EINVAL: it was not frozen
                fcntl.ioctl(directory, _FITHAW, b"\0" * 8)
            os.close(directory)
        self._frozen = []

    async def _device(self, serial: str) -> str:
        until = time.monotonic() + _COMING
        while (device := _find(serial)) is None:
            if time.monotonic() > until:
                raise Refusal("NotFound", "the disk did not appear in the machine", "ENODEV")
            await asyncio.sleep(_LOOK)
        return device


def leave_clean() -> None:
    """Leave every volume's file system as one that was unmounted: the machine ends now. Never raises.

    Where something still uses it, it is frozen: what was written is there, and nothing more comes.
    """
    for device, path in reversed(_mounted()):
        if _libc.umount2(path.encode(), 0) != 0:
            try:
                _control(path, _FIFREEZE)
            except OSError as error:
                print(f"atoll-agent: {device}: {error}", flush=True)


def _paths(serial: str) -> list[str]:
    return [path for _device, path in _mounted(serial)]


def _find(serial: str) -> str | None:
    for place in glob.glob("/sys/block/vd*/serial"):
        try:
            with open(place) as file:
                if serial and file.read().strip() == serial:
                    device = f"/dev/{place.split('/')[3]}"
                    return device if os.path.exists(device) else None
        except OSError:
            continue  # it is just going
    return None


def _mounted(serial: str = "") -> list[tuple[str, str]]:
    """Devices of volumes and where they are mounted, in the order in which they were; all, or that volume's."""
    found = []
    with open("/proc/self/mountinfo") as lines:
        for line in lines:
            fields = line.split()
            path = fields[4].encode().decode("unicode_escape").encode("latin-1").decode("utf-8", "surrogateescape")
            device = fields[fields.index("-") + 2]
            if not device.startswith("/dev/vd"):
                continue
            try:
                with open(f"/sys/block/{device[5:]}/serial") as file:
                    name = file.read().strip()
            except OSError:
                continue
            if name and (not serial or name == serial):
                found.append((device, path))
    return found


def _mount(device: str, path: str, read_only: bool, owner: tuple[int, int]) -> None:
    _directory(path, owner)
    path = os.path.realpath(path)
    if (device, path) in _mounted():
        return
    flags = MS_NODEV | (MS_RDONLY if read_only else 0)
    # discard: what is removed in the guest takes no room on the host any more
    options = b"" if read_only else b"discard"
    if _libc.mount(device.encode(), os.fsencode(path), b"ext4", flags, options) != 0:
        code = ctypes.get_errno()
        what = "it holds no file system that can be mounted" if code == errno.EINVAL else os.strerror(code)
        raise Refusal("Error", f"the volume could not be mounted at {path}: {what}", errno.errorcode.get(code, "EIO"))
    if not read_only:
        _grow(device, path)


def _directory(path: str, owner: tuple[int, int]) -> None:
    """Make the directory and those above it that are missing; those belong to the user."""
    missing = []
    at = path
    while not os.path.isdir(at):
        missing.append(at)
        at = os.path.dirname(at)
    for one in reversed(missing):
        os.mkdir(one, 0o755)
        os.chown(one, *owner)


def _grow(device: str, path: str) -> None:
    """Nothing where the file system has all of its disk already."""
    disk = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = struct.unpack("Q", fcntl.ioctl(disk, _BLKGETSIZE64, b"\0" * 8))[0]
    finally:
        os.close(disk)
    block = os.statvfs(path).f_frsize
    _control(path, _RESIZE, struct.pack("Q", size // block))


def _unmount(serial: str) -> None:
    for _device, path in reversed(_mounted(serial)):
        if _libc.umount2(os.fsencode(path), 0) != 0:
            code = ctypes.get_errno()
            if code != errno.EBUSY:
                raise OSError(code, os.strerror(code), path)
            raise Refusal("Busy", f"{path} is in use{_users(path)}", "EBUSY")


def _users(path: str) -> str:
    """Which processes keep it, for people: at most three of them."""
    found = []
    for place in glob.glob("/proc/[0-9]*"):
        try:
            links = [os.readlink(f"{place}/{what}") for what in ("cwd", "root", "exe")]
            links += [os.readlink(link) for link in glob.glob(f"{place}/fd/*")]
        except OSError:
            continue
        if any(link == path or link.startswith(f"{path}/") for link in links):
            with open(f"{place}/comm") as file:
                found.append(f"{file.read().strip()} ({place[6:]})")
        if len(found) == 3:
            break
    return f" by {', '.join(found)}" if found else ""


def _control(path: str, request: int, argument: bytes = b"\0" * 8) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(directory, request, argument)
    finally:
        os.close(directory)
