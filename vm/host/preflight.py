"""Is this host fit to run machines? Each check answers with a finding: what was seen, what it means, what to do.

Checks only look; the two that start something (the KVM probe, and the isolation check in vm/node) clean up after
themselves. `python3 -m vm.host.preflight DATA` is what can be said before anything is installed: this module needs the
standard library only.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import re
import secrets
import shutil
import sys
import time
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from vm.host import cgroups, kvm
from vm.host.run import CommandFailed, run
from vm.net.nftables import gated

QEMU_MINIMUM = (7, 2)
DISK_WARN = 10 * 2**30
DISK_FAIL = 3 * 2**30
MEMORY_WARN = 4 * 2**30
_SYSTEMD = Path("/run/systemd/system")
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronized
_INSTALLED = ("QEMU", "libvirt", "nftables", "guest image")


class Level(StrEnum):
    """How bad a finding is: FAIL means machines will not run."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's report; `todo` is empty where nothing is to be done."""

    name: str
    level: Level
    seen: str
    todo: str = ""


MARKS = {Level.OK: "ok  ", Level.WARN: "note", Level.FAIL: "FAIL"}


def lines(finding: Finding) -> list[str]:
    """A finding as it is printed."""
    todo = [f"      -> {finding.todo}"] if finding.todo and finding.level is not Level.OK else []
    return [f"{MARKS[finding.level]}  {finding.name}: {finding.seen}", *todo]


def host(*, data: Path, users: tuple[str, ...], kernel: Path | None) -> list[Finding]:
    """Everything that can be said without a node, in the order a person would ask. Blocks for up to 30 seconds."""
    findings = [_root(), _cpu(), _qemu(), _libvirt(), _namespaces(), _nftables(), _disk(data), _memory(), _clock()]
    findings += [_groups(), _interceptor()]
    findings += [_user(name) for name in users]
    if kernel is None:
        findings.append(Finding("guest image", Level.FAIL, "not built yet", 'run "make up", which builds it'))
    else:
        findings.append(Finding("guest image", Level.OK, str(kernel.parent)))
    return [*findings, _kvm(kernel)]


def bare_host(data: Path) -> list[Finding]:
    """The same of a host on which nothing is installed yet: what the installer brings is no failure."""
    return [
        replace(finding, level=Level.WARN, todo='"make up" installs it')
        if finding.level is Level.FAIL and (finding.name in _INSTALLED or "not found (" in finding.seen)
        else finding
        for finding in host(data=data, users=(), kernel=None)
    ]


def _root() -> Finding:
    if os.geteuid() == 0:
        return Finding("rights", Level.OK, "root")
    return Finding("rights", Level.FAIL, "not root: namespaces and taps cannot be made", "use sudo")


def _cpu() -> Finding:
    flag = kvm.cpu_flag()
    if flag:
        return Finding("CPU", Level.OK, f"has {flag}, {os.cpu_count()} cores")
    return Finding(
        "CPU",
        Level.WARN,
        f"no vmx or svm flag, {os.cpu_count()} cores: machines run under emulation (TCG), 13 to 19 times slower",
        "switch virtualisation on in the firmware, or nested virtualisation in the hypervisor of this host",
    )


def _kvm(kernel: Path | None) -> Finding:
    if kernel is None and not kvm.missing():
        seen = "not tried yet: only booting the guest image's kernel tells whether it works"
        return Finding("KVM", Level.WARN, seen, 'run "make up", which builds the image, then "make doctor" again')
    answer = kvm.probe(kernel) if kernel else kvm.Kvm(False, kvm.missing())
    if answer.usable:
        return Finding("KVM", Level.OK, answer.why)
    return Finding("KVM", Level.WARN, f"{answer.why}; machines run under TCG", "everything works without it, slower")


def _qemu() -> Finding:
    try:
        said = run(["qemu-system-x86_64", "--version"]).stdout
    except CommandFailed as error:
        return Finding("QEMU", Level.FAIL, str(error), "apt-get install qemu-system-x86")
    found = re.search(r"version (\d+)\.(\d+)", said)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    if version < QEMU_MINIMUM:
        return Finding("QEMU", Level.FAIL, said.splitlines()[0], "Atoll needs 7.2 or newer, as in Debian 12")
    return Finding("QEMU", Level.OK, said.splitlines()[0])


def _libvirt() -> Finding:
    drivers = list(Path("/usr/lib").glob("*/libvirt/connection-driver/libvirt_driver_qemu.so"))
    if not drivers:
        return Finding(
            "libvirt", Level.FAIL, "the QEMU driver is missing", "apt-get install libvirt-daemon-driver-qemu"
        )
    return Finding("libvirt", Level.OK, f"QEMU driver at {drivers[0]}")


def _namespaces() -> Finding:
    name = f"atoll-doctor-{secrets.token_hex(3)}"
    try:
        run(["ip", "netns", "add", name])
        run(["ip", "netns", "delete", name])
    except CommandFailed as error:
        return Finding(
            "network namespaces",
            Level.FAIL,
            f"cannot be made ({error})",
            "a container needs CAP_SYS_ADMIN and CAP_NET_ADMIN for it; a kernel needs CONFIG_NET_NS",
        )
    if not Path("/dev/net/tun").exists():
        return Finding("network namespaces", Level.FAIL, "/dev/net/tun is missing", "modprobe tun")
    return Finding("network namespaces", Level.OK, "can be made, and taps too")


_NFT_NEEDED = "apt-get install nftables; a kernel needs CONFIG_NFT_NAT, CONFIG_NFT_REDIR and CONFIG_NFT_CONNLIMIT"


def _nftables() -> Finding:
    # In a namespace of its own, which goes with it: the host's rules are not touched
    try:
        run(["unshare", "--net", "nft", "-f", "-"], input_text=gated())
    except CommandFailed as error:
        return Finding("nftables", Level.FAIL, f"rules cannot be loaded ({error})", _NFT_NEEDED)
    return Finding("nftables", Level.OK, "rules can be loaded")


def _groups(root: Path = cgroups.ROOT) -> Finding:
    if _SYSTEMD.exists():
        return Finding("control groups", Level.OK, "libvirt bounds each machine in one, by systemd")
    groups = cgroups.ControlGroups(f"atoll-probe-{os.getpid()}", root)
    groups.close()
    if groups.version:
        bounded = "CPU and memory" if groups.version == 2 else "memory"  # CPU by the count of its vCPUs
        return Finding("control groups", Level.OK, f"version {groups.version}: ours bound each machine's {bounded}")
    seen = "cannot be made: a machine is bounded by its vCPUs and QEMU's memory only"
    return Finding("control groups", Level.WARN, seen, "start the container with a writable /sys/fs/cgroup")


def _interceptor() -> Finding:
    place = Path(__file__).resolve().parents[2] / ".venv-interceptor"
    if (place / "bin" / "python").exists():
        return Finding("interceptor", Level.OK, f"has its environment at {place}")
    seen = "its environment is missing: hosts that a secret is for cannot be reached"
    return Finding("interceptor", Level.WARN, seen, 'run "make up", which makes it')


def _disk(data: Path) -> Finding:
    place = next(folder for folder in (data, *data.parents) if folder.exists())
    usage = shutil.disk_usage(place)
    seen = f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB free at {place}"
    if usage.free < DISK_FAIL:
        return Finding("disk", Level.FAIL, seen, 'make room ("make disk" shows what Atoll uses)')
    if usage.free < DISK_WARN:
        return Finding("disk", Level.WARN, seen, "a machine's disk can grow to 10 GiB: make room before it is needed")
    return Finding("disk", Level.OK, seen)


def _memory() -> Finding:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    seen = f"{available / 2**30:.1f} GiB available"
    if available < MEMORY_WARN:
        return Finding("memory", Level.WARN, seen, "a machine takes up to its memory (1.25 GiB by default)")
    return Finding("memory", Level.OK, seen)


def _clock() -> Finding:
    year = time.gmtime().tm_year
    if year < 2025:
        return Finding("clock", Level.FAIL, f"says {year}: certificates and tokens will not be valid", "set the clock")
    source = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource").read_text().strip()
    seen = f"{time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())}, source {source}"
    # struct timex, all zeroes: asks and sets nothing. The kernel says whether a time service has set the clock lately.
    if ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512)) == _TIME_ERROR:
        what_to_do = "run a time service (systemd-timesyncd, chrony): guests are given this clock"
        return Finding("clock", Level.WARN, f"{seen}; nothing keeps it right", what_to_do)
    return Finding("clock", Level.OK, f"{seen}, kept right by a time service")


def _user(name: str) -> Finding:
    try:
        record = pwd.getpwnam(name)
    except KeyError:
        return Finding(f"user {name}", Level.WARN, "missing", '"make up" makes it')
    if record.pw_uid == 0:
        return Finding(f"user {name}", Level.FAIL, "is root", "remove that account: it must be unprivileged")
    return Finding(f"user {name}", Level.OK, f"uid {record.pw_uid}")


def main(data: str) -> int:
    """Print what can be said before anything is installed; 1 where machines will not run."""
    findings = bare_host(Path(data))
    for finding in findings:
        print(*lines(finding), sep="\n")
    print(
        'Atoll is not installed here yet. After "make up" this also boots a machine and proves that it has a gate only.'
    )
    return int(any(finding.level is Level.FAIL for finding in findings))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
