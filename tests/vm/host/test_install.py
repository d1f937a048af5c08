"""The installer: what a host lacks or refuses is one clear line with what to do, and what is there is left alone."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.installation import reachable_directory
from vm.host import install

CHECKOUT = Path(__file__).resolve().parents[3]
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def run(*argv: str, path: str, cwd: Path = CHECKOUT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: TID251 - the test is the runner
        argv, cwd=cwd, env={"PATH": path}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def programs(place: Path, *names: str) -> str:
    """A PATH on which there are these programs only."""
    for name in names:
        (place / name).symlink_to(str(shutil.which(name)))
    return str(place)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place of its own for what the installer keeps."""
    monkeypatch.setattr(install, "TOOLS", tmp_path)
    monkeypatch.setattr(install, "LOG", tmp_path / "install.log")
    return tmp_path


@pytest.mark.skipif(os.geteuid() != 0, reason="changing users needs root")
@pytest.mark.parametrize("command", [("sh", "vm/host/bootstrap.sh", "up"), ("make", "-s", "up")])
def test_without_rights_it_says_so(command: tuple[str, ...]) -> None:
    """Neither root nor sudo: one line, and nothing is done."""
    with reachable_directory() as place:
        # Theirs is a checkout that they can enter
        (place / "vm" / "host").mkdir(parents=True)
        for name in ("Makefile", "vm/host/bootstrap.sh"):
            shutil.copy(CHECKOUT / name, place / name)
        path = programs(place, "setpriv", "make", "sh", "id", "dirname")
        done = run(*NOBODY, *command, path=path, cwd=place)
    assert done.returncode != 0
    [line] = [line for line in done.stderr.splitlines() if not line.startswith("make:")]
    assert line.startswith("atoll: this needs root")
    assert "sudo" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="it asks for root first")
def test_another_distribution_is_told_so(tmp_path: Path) -> None:
    done = run("sh", "vm/host/bootstrap.sh", "up", path=programs(tmp_path, "sh", "id", "dirname"))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "Debian 12 and 13" in done.stderr


PIP = """
WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError('<...>: Failed to establish a new \
connection: [Errno -3] Temporary failure in name resolution')': /simple/uv/
ERROR: Could not find a version that satisfies the requirement uv>=0.9 (from versions: none)
ERROR: No matching distribution found for uv>=0.9
"""
APT = "E: Failed to fetch http://deb.debian.org/x.deb  Temporary failure resolving 'deb.debian.org'\n"
UV = "error: Failed to fetch: `https://pypi.org/simple/six/`\n  cause: client error (Connect)\n  cause: dns error\n"
NPM = "npm error code EAI_AGAIN\nnpm error request to https://registry.npmjs.org/x failed\n"


@pytest.mark.parametrize("said", [PIP, APT, UV, NPM], ids=["pip", "apt", "uv", "npm"])
def test_no_network_is_called_that(said: str) -> None:
    """Whichever program fails for want of it, and whatever it says last."""
    assert install.advice(said).startswith("no network, or no name resolution")


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("cp: error writing 'x': No space left on device\n", "the disk is full"),
        ("E: You don't have enough free space in /var/cache/apt/archives/.\n", "the disk is full"),
        ("E: Could not get lock /var/lib/dpkg/lock-frontend.\n", "another package installation is running"),
        ("reading\nE: Unable to locate package qemu\nhint: look elsewhere\n", "E: Unable to locate package qemu"),
        ("", "it said nothing"),
    ],
)
def test_what_a_program_said_becomes_one_line(said: str, advice: str) -> None:
    assert install.advice(said).startswith(advice)
    assert "\n" not in install.advice(said)


def test_a_failed_step_says_which_and_where_the_rest_is(
    tools: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Progress shows the step with its seconds, then the line; what the program printed is in the log."""

    def packages(wanted: list[str]) -> None:
        with install.Step("a step") as step:
            step.run("sh", "-c", "echo much; echo 'E: it broke' >&2; exit 3")

    monkeypatch.setattr(install, "system_packages", packages)
    assert install.main("up") == 1
    said = capfd.readouterr().err
    assert "a step: failed in 0 s" in said
    assert said.splitlines()[-1] == f"atoll: a step failed: E: it broke (whole output: {tools / 'install.log'})"
    assert "much" in (tools / "install.log").read_text()


def test_a_disk_without_room_is_told_before_anything_is_done(
    tools: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    usage = SimpleNamespace(total=10**12, used=10**12 - 2**20, free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    assert install.main("up") == 1
    assert capfd.readouterr().err.startswith("atoll: only 1 MiB are free beside")


def test_ctrl_c_is_no_traceback(
    tools: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(wanted: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(install, "system_packages", interrupted)
    assert install.main("up") == 130
    assert capfd.readouterr().err.splitlines()[-1].startswith("atoll: stopped; run it again")


def python(place: Path, version: str) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(f"#!/bin/sh\necho Python {version}\n")
    place.chmod(0o755)
    return place


def test_an_interpreter_is_looked_for_among_pyenvs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest that is new enough, and none that the locks do not know; None means that one is downloaded."""
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert install.interpreter() is None
    for version in ("3.11.9", "3.15.0"):
        python(tmp_path / "versions" / version / "bin" / "python3", version)
    python(tmp_path / "bin" / "python3", "3.11.2")
    assert install.interpreter() is None
    found = python(tmp_path / "bin" / "python3.12", "3.12.1")
    assert install.interpreter() == found
    found = python(tmp_path / "versions" / "3.13.5" / "bin" / "python3", "3.13.5")
    assert install.interpreter() == found


def test_what_is_there_is_not_installed_again(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every package, the environment of this lock and the front end of this tree no program is run."""

    class NoStep:
        def __init__(self, title: str) -> None:
            pytest.fail(f"a step was taken: {title}")

    monkeypatch.setattr(install, "Step", NoStep)
    monkeypatch.setattr(install, "installed", set)
    install.system_packages(install.RUN_PACKAGES)
    environment = tools / "venv"
    python(environment / "bin" / "python", "3.13.5")
    lock = hashlib.sha256((install.ROOT / "requirements-dev.lock").read_bytes()).hexdigest()
    (environment / "atoll-lock").write_text(lock)
    monkeypatch.setattr(install, "VENV", environment)
    install.environment(tests=False)
    install.environment(tests=True)
    other = tools / "interceptor"
    python(other / "bin" / "python", "3.13.5")
    lock = hashlib.sha256((install.ROOT / "vm/egress/interceptor/requirements.lock").read_bytes()).hexdigest()
    (other / "atoll-lock").write_text(lock)
    monkeypatch.setattr(install, "INTERCEPTOR", other)
    install.interceptor()


@pytest.mark.parametrize(("code", "blamed"), [(errno.ENOSPC, True), (errno.EROFS, True), (errno.EACCES, False)])
def test_a_disk_is_blamed_only_where_it_is_one(
    code: int, blamed: bool, tools: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever else the host refuses is told as it is."""

    def refuse(wanted: list[str]) -> None:
        raise OSError(code, os.strerror(code), "/somewhere")

    monkeypatch.setattr(install, "system_packages", refuse)
    assert install.main("up") == 1
    said = capsys.readouterr().err
    assert os.strerror(code) in said
    assert ("is the disk full" in said) is blamed
