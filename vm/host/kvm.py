"""Decides whether this host really runs guests with hardware virtualisation, by booting one.

That /dev/kvm exists and opens proves nothing: there are hosts (nested ones above all) where it does and a stock kernel
hangs. The probe boots the guest image's kernel without a root file system: a working one panics and, with `panic=-1`,
ends QEMU.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import stat
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from vm.host.run import CommandFailed, run

DEVICE = Path("/dev/kvm")
DEADLINE = 15.0  # seconds; a working probe takes about one
_FLAGS = {"vmx": "Intel VT-x", "svm": "AMD-V"}


@dataclass(frozen=True, slots=True)
class Kvm:
    """`usable` decides the machines' accelerator; `why` is for people."""

    usable: bool
    why: str


def boot_id() -> str:
    """The kernel's name for this boot of the host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def cpu_flag() -> str:
    """The virtualisation flag of this CPU ("vmx", "svm"), or empty."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return next((flag for flag in line.split() if flag in _FLAGS), "")
    return ""


def missing() -> str:
    """What a guest would need that is not even there; empty: only booting one can tell."""
    flag = cpu_flag()
    if not flag:
        return "the CPU shows neither vmx nor svm: no hardware virtualisation, or it is switched off"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return f"the CPU has {_FLAGS[flag]}, but /dev/kvm cannot be opened: is the kvm module loaded?"
    return ""


def probe(kernel: Path, *, deadline: float = DEADLINE) -> Kvm:
    """Boot the probe guest; blocks for up to `deadline` seconds."""
    if why := missing():
        return Kvm(False, why)
    began = time.monotonic()
    try:
        run(
            [
                *("qemu-system-x86_64", "-accel", "kvm", "-machine", "q35", "-cpu", "host", "-m", "256", "-smp", "1"),
                *("-nodefaults", "-display", "none", "-no-reboot", "-kernel", kernel, "-append", "quiet panic=-1"),
            ],
            timeout=deadline,
        )
    except CommandFailed as error:
        return Kvm(False, f"a guest does not boot under /dev/kvm ({error.why})")
    return Kvm(True, f"a guest booted with {_FLAGS[cpu_flag()]} in {time.monotonic() - began:.1f} s")


def decide(kernel: Path, cache: Path) -> Kvm:
    """The probe's answer, remembered in the file `cache` until the host boots again."""
    try:
        known = json.loads(cache.read_text())
        if known.pop("boot_id") == boot_id():
            return Kvm(**known)
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        pass
    answer = probe(kernel)
    fresh = cache.with_suffix(".new")
    fresh.write_text(json.dumps({"boot_id": boot_id(), **asdict(answer)}))
    fresh.rename(cache)
    return answer


def let_in(user: str) -> None:
    """Give QEMU's user access to /dev/kvm, where there is one.

    Also where only TCG is used: libvirt probes QEMU as root, sees KVM, finds it closed to `user`, and from then on
    takes what it knows about QEMU for outdated, which costs every start of a machine 13 seconds.
    """
    try:
        device = DEVICE.stat()
    except FileNotFoundError:
        return
    record = pwd.getpwnam(user)
    writable = stat.S_IMODE(device.st_mode)
    if writable & 0o006 == 0o006 or (device.st_uid == record.pw_uid and writable & 0o600 == 0o600):
        return
    if writable & 0o060 == 0o060:
        if device.st_gid in os.getgrouplist(user, record.pw_gid):
            return
        if device.st_gid != 0:
            run(["usermod", "--append", "--groups", grp.getgrgid(device.st_gid).gr_name, user])
            return
    os.chown(DEVICE, -1, record.pw_gid)
    DEVICE.chmod(writable | 0o060)
