"""What the doctor says of a host: every part is looked at, and whatever is wrong comes with what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from vm.host import kvm, preflight
from vm.host.preflight import Finding, Level

CHECKOUT = Path(__file__).resolve().parents[3]
BARE = "import sys; sys.path.insert(0, sys.argv[1]); from vm.host.preflight import main; main(sys.argv[1])"


def found(tmp_path: Path, *, kernel: Path | None = None) -> dict[str, Finding]:
    findings = preflight.host(data=tmp_path / "data", users=("root", "nobody-here"), kernel=kernel)
    assert all(finding.seen for finding in findings)
    assert all(finding.todo for finding in findings if finding.level is not Level.OK)
    return {finding.name: finding for finding in findings}


def test_every_part_of_this_host_is_judged(tmp_path: Path) -> None:
    """A host that runs this suite is fit, but for what the test itself names wrongly."""
    seen = found(tmp_path)
    parts = ("rights", "CPU", "QEMU", "libvirt", "network namespaces", "nftables", "disk", "memory", "clock")
    assert set(parts) <= set(seen)
    assert (seen["user root"].level, seen["user nobody-here"].level) == (Level.FAIL, Level.WARN)
    assert (seen["guest image"].level, seen["guest image"].todo) == (Level.FAIL, 'run "make up", which builds it')


def test_missing_programs_are_named_with_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    seen = found(tmp_path)
    assert {seen[name].level for name in ("QEMU", "nftables", "network namespaces")} == {Level.FAIL}
    assert seen["QEMU"].todo == "apt-get install qemu-system-x86"
    assert seen["nftables"].todo.startswith("apt-get install nftables")


@pytest.mark.parametrize(("year", "kept", "level"), [(1970, 0, Level.FAIL), (2026, 5, Level.WARN), (2026, 0, Level.OK)])
def test_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, year: int, kept: int, level: Level) -> None:
    """`kept`: what the kernel answers to adjtimex; 5 says that nothing has set it lately."""
    monkeypatch.setattr("vm.host.preflight.time.gmtime", lambda: time.struct_time((year, 1, 1, 0, 0, 0, 0, 1, 0)))
    monkeypatch.setattr("vm.host.preflight.ctypes.CDLL", lambda name: SimpleNamespace(adjtimex=lambda timex: kept))
    seen = found(tmp_path)["clock"]
    assert (seen.level, bool(seen.todo)) == (level, level is not Level.OK)


@pytest.mark.parametrize(("free", "level"), [(2**20, Level.FAIL), (5 * 2**30, Level.WARN), (2**40, Level.OK)])
def test_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: Level) -> None:
    usage = SimpleNamespace(total=2**41, used=2**41 - free, free=free)
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage)
    assert found(tmp_path)["disk"].level is level


@pytest.fixture
def with_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CPU that shows its flag, a device that opens, and a QEMU of the test's own, whose script is returned."""
    monkeypatch.setattr(kvm, "cpu_flag", lambda: "vmx")
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    qemu = tmp_path / "qemu-system-x86_64"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    qemu.touch(mode=0o755)
    return qemu


def test_kvm_counts_only_where_a_guest_boots(with_flag: Path) -> None:
    """A device that opens and a guest that hangs, or a QEMU that fails, is no hardware virtualisation."""
    with_flag.write_text("#!/bin/sh\nexit 0\n")
    assert kvm.probe(Path("vmlinux")).usable
    with_flag.write_text("#!/bin/sh\necho 'failed to initialize kvm' >&2; exit 1\n")
    assert kvm.probe(Path("vmlinux")).why == "a guest does not boot under /dev/kvm (failed to initialize kvm)"
    with_flag.write_text("#!/bin/sh\nexec sleep 60\n")
    began = time.monotonic()
    assert not kvm.probe(Path("vmlinux"), deadline=0.5).usable
    assert time.monotonic() - began < 10


def test_without_the_flag_nothing_is_booted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvm, "cpu_flag", lambda: "")
    assert "neither vmx nor svm" in kvm.probe(Path("vmlinux")).why


def test_the_answer_holds_until_the_host_boots_again(with_flag: Path, tmp_path: Path) -> None:
    """A probe takes seconds: it is made once for each boot of the host."""
    with_flag.write_text("#!/bin/sh\nexit 0\n")
    cache = tmp_path / "kvm.json"
    assert kvm.decide(Path("vmlinux"), cache).usable
    with_flag.write_text("#!/bin/sh\nexit 1\n")
    assert kvm.decide(Path("vmlinux"), cache).usable
    cache.write_text(json.dumps({**json.loads(cache.read_text()), "boot_id": "another"}))
    assert not kvm.decide(Path("vmlinux"), cache).usable
    cache.write_text("{")
    assert not kvm.decide(Path("vmlinux"), cache).usable


def test_a_bare_host_is_judged_before_anything_is_installed(tmp_path: Path) -> None:
    """The system's own Python and no program at all: what is to be installed is said, and is no failure."""
    shutil.copytree(CHECKOUT / "vm", tmp_path / "vm")
    done = subprocess.run(  # noqa: TID251
        ["/usr/bin/python3", "-I", "-c", BARE, str(tmp_path)],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    for name in ("QEMU", "nftables", "guest image"):
        assert f"note  {name}: " in done.stdout
    assert "network namespaces: cannot be made" in done.stdout
    assert '-> "make up" installs it' in done.stdout
    assert "FAIL  QEMU" not in done.stdout
    assert done.stdout.splitlines()[-1].startswith("Atoll is not installed here yet")


def test_without_an_image_kvm_is_not_judged(with_flag: Path, tmp_path: Path) -> None:
    """It is told apart from hardware virtualisation that is not there."""
    seen = found(tmp_path)["KVM"]
    assert (seen.level, seen.seen.split(":")[0]) == (Level.WARN, "not tried yet")


def test_a_host_without_control_groups_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines run all the same, with fewer bounds: that must not go unsaid."""
    monkeypatch.setattr(preflight, "_SYSTEMD", tmp_path / "none")
    finding = preflight._groups(tmp_path / "no cgroups here")
    assert finding.level is Level.WARN
    assert "vCPUs and QEMU's memory only" in finding.seen
