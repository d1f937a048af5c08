"""Builds the guest image from the recipe: a Debian tree, made once, and our own layer on top, made in seconds.

`python -m vm.image.build` (as root) prints the directory of the finished image. Images are content-addressed: what
lies at `<cache>/<hash>` is complete and never changes. The Debian tree is kept beside them as `base-<hash>` (readable
by root only: it holds setuid programs), so that a change of agent or init needs no second download.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vm.host.install import NO_NETWORK
from vm.image import kallsyms, recipe, registries, sources, vmlinux
from vm.image.files import FILES
from vm.image.hashes import RING, agent_sources, base_hash, current_hash, host_certificates, image_path
from vm.image.initramfs import build_initramfs, with_dependencies

Progress = Callable[[str], None]

DEFAULT_CACHE = Path("/var/cache/atoll/images")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
TOOLS = ("mmdebstrap", "mke2fs", "dpkg-deb", "chroot")
NEEDED_BYTES = 3 * 2**30

_LAYER_PLACE = "usr/lib/atoll"


class BuildFailed(Exception):
    """The image could not be built; the message says why and what to do."""


# -- building ----------------------------------------------------------------------------------------------------------


def build(
    cache: Path = DEFAULT_CACHE, progress: Progress = lambda line: None, *, mirrors: list[sources.Source] | None = None
) -> Path:
    """The directory of the current image, built first where it is missing. Repeatable; one builder at a time.

    `progress` gets a line for each step. Raises BuildFailed; nothing half-made is ever seen at the final place.
    """
    ready = image_path(cache, current_hash(mirrors))
    if ready is not None:
        return ready
    _require_host()
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache, progress):
        ready = image_path(cache, current_hash(mirrors))
        if ready is not None:
            return ready
        for leftover in cache.glob(".building-*"):
            shutil.rmtree(leftover)
        try:
            base = _base(cache, progress, mirrors)
            place = _image(cache, base, progress, mirrors)
        except OSError as error:
            raise BuildFailed(f"building the guest image failed: {error}{_advice(str(error), cache)}") from error
        for old in cache.glob("base-*"):
            if old != base:
                shutil.rmtree(old)
        return place


def _require_host() -> None:
    if os.geteuid() != 0:
        raise BuildFailed("building the guest image needs root: run it with sudo")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise BuildFailed(f"missing on this host: {', '.join(missing)}; run make up, which installs them")
    if not KEYRING.exists():
        raise BuildFailed(f"{KEYRING} is missing: install the package debian-archive-keyring")


@contextmanager
def _locked(cache: Path, progress: Progress) -> Iterator[None]:
    with (cache / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process is building the guest image: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _step(progress: Progress, title: str) -> Iterator[None]:
    progress(f"{title} ...")
    began = time.monotonic()
    yield
    progress(f"{title}: done in {time.monotonic() - began:.1f} s")


@contextmanager
def _under_construction(cache: Path) -> Iterator[Path]:
    place = cache / f".building-{os.getpid()}"
    place.mkdir(mode=0o700)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _run(argv: list[str], *, log: Path, cache: Path, env: dict[str, str] | None = None) -> None:
    with log.open("ab") as sink:
        sink.write(f"\n$ {' '.join(argv)}\n".encode())
        sink.flush()
        start = sink.tell()
        try:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env={**os.environ, **(env or {})}
            )
        except FileNotFoundError as error:
            raise BuildFailed(f"{argv[0]} is not installed on this host") from error
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if code != 0:
        with log.open("rb") as source:
            source.seek(start)
            said = source.read()[-262_144:].decode(errors="replace")
        kept = cache / "build.log"
        shutil.copyfile(log, kept)
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("E:", "error", "ERROR"))] or lines or ["it said nothing"]
        reason = errors[0][:300]
        raise BuildFailed(f"{Path(argv[0]).name} failed: {reason}{_advice(said, cache)} (whole output: {kept})")


def _advice(said: str, cache: Path) -> str:
    low = said.lower()
    if "no space left" in low or "enough free space" in low:
        free = shutil.disk_usage(cache).free // 2**20
        return f"; the disk of {cache} is full ({free} MiB free): make room and run this again"
    if any(word in low for word in (*NO_NETWORK, "failed to fetch")):
        return "; is the network up? Debian's mirror and the package index must be reachable"
    return ""


# -- the Debian tree ---------------------------------------------------------------------------------------------------


def _base(cache: Path, progress: Progress, mirrors: list[sources.Source] | None) -> Path:
    place = cache / f"base-{base_hash(mirrors)}"
    if place.exists():
        return place
    free = shutil.disk_usage(cache).free
    if free < NEEDED_BYTES:
        raise BuildFailed(
            f"only {free // 2**20} MiB are free at {cache}: the guest image needs {NEEDED_BYTES // 2**20} MiB to build"
        )
    archives = mirrors or sources.of_host(recipe.SUITE)
    if not archives:
        raise BuildFailed("no Debian mirror in /etc/apt/sources.list or sources.list.d: name one with --mirror")
    with _under_construction(cache) as work:
        log = work / "build.log"
        tree = work / "tree"
        with _step(progress, f"Debian {recipe.SUITE} with {len(recipe.PACKAGES)} packages (some 300 MB to download)"):
            _debootstrap(work, tree, archives, log, cache)
        with _step(progress, "Node.js and Deno (some 100 MB to download)"):
            _wheels(work, tree, log, cache)
        with _step(progress, "kernel"):
            _kernel(work, tree, log, cache)
        with _step(progress, "user, certificates and byte code"):
            _prepare_tree(tree, log, cache)
        shutil.rmtree(work / "debs")
        work.rename(place)
        return place


_FETCH_DEBS = (
    'mkdir "$1/../debs" && cd "$1/../debs" && export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" && '
    "apt-get download {busybox} $(apt-cache depends {kernel} | sed -n 's/^ *Depends: \\(linux-image-[0-9].*\\)$/\\1/p')"
)


def _debootstrap(work: Path, tree: Path, archives: list[sources.Source], log: Path, cache: Path) -> None:
    # The kernel is only unpacked: installing it would bring an initramfs generator and a boot loader's hooks
    hook = _FETCH_DEBS.format(busybox=recipe.BUSYBOX_PACKAGE, kernel=recipe.KERNEL_PACKAGE)
    _run(
        [
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            "--format=directory",
            f"--keyring={KEYRING}",
            f"--include={','.join(recipe.PACKAGES)}",
            *(f"--dpkgopt=path-exclude={path}" for path in recipe.DPKG_EXCLUDE),
            *(f"--dpkgopt=path-include={path}" for path in recipe.DPKG_INCLUDE),
            f"--customize-hook={hook}",
            recipe.SUITE,
            str(tree),
            *(source.line() for source in archives),
        ],
        log=log,
        cache=cache,
        # mmdebstrap's own temporary files must not land on a small /tmp
        env={"TMPDIR": str(work), "DEBIAN_FRONTEND": "noninteractive"},
    )


def _wheels(work: Path, tree: Path, log: Path, cache: Path) -> None:
    target = work / "wheels"
    wanted = ["--no-deps", "--only-binary=:all:", f"--python-version={recipe.WHEEL_PYTHON}", *recipe.WHEELS]
    uv = shutil.which("uv") or str(RING.parent / ".tools" / "uv" / "bin" / "uv")
    if Path(uv).exists():
        argv = [uv, "pip", "install", "--python", sys.executable, "--python-platform", recipe.WHEEL_PLATFORM]
        argv += ["--link-mode=copy", "--target", str(target), *wanted]
    else:
        argv = [
            shutil.which("python3", path="/usr/bin:/bin") or "python3",
            "-m",
            "pip",
            "install",
            "--target",
            str(target),
        ]
        argv += ["--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_27_x86_64", *wanted]
    _run(argv, log=log, cache=cache)
    local = tree / "usr" / "local"
    deno = next(path for path in target.rglob("deno") if path.is_file() and path.stat().st_size > 2**20)
    shutil.move(deno, local / "bin" / "deno")
    (local / "bin" / "deno").chmod(0o755)
    node = next(path for path in target.rglob("bin/node") if path.is_file()).parents[1]
    shutil.move(node / "bin" / "node", local / "bin" / "node")
    (local / "bin" / "node").chmod(0o755)
    shutil.move(node / "lib" / "node_modules", local / "lib" / "node_modules")
    for name, script in (("npm", "npm-cli.js"), ("npx", "npx-cli.js")):
        (local / "bin" / name).symlink_to(f"../lib/node_modules/npm/bin/{script}")
        (local / "lib" / "node_modules" / "npm" / "bin" / script).chmod(0o755)
    shutil.rmtree(target)


def _kernel(work: Path, tree: Path, log: Path, cache: Path) -> None:
    boot = work / "boot"
    unpacked = work / "unpacked"
    for deb in sorted((work / "debs").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(deb), str(unpacked)], log=log, cache=cache)
    boot.mkdir()
    shutil.move(next(unpacked.rglob("busybox")), boot / "busybox")
    compressed = next((unpacked / "boot").glob("vmlinuz-*"))
    # An uncompressed kernel boots 0.4 s sooner under TCG
    (boot / "vmlinux").write_bytes(vmlinux.extract(compressed.read_bytes()))
    modules = next(path for place in ("usr/lib", "lib") for path in unpacked.glob(f"{place}/modules/*"))
    # The guest's own depmod: not every host has one
    inside = tree / "usr" / "lib" / "modules" / modules.name
    inside.parent.mkdir(exist_ok=True)
    shutil.move(modules, inside)
    _run(["chroot", str(tree), "depmod", modules.name], log=log, cache=cache, env={"PATH": recipe.PATH})
    shutil.move(inside, boot / "modules")
    (boot / "version").write_text(modules.name)
    shutil.rmtree(unpacked)


def _prepare_tree(tree: Path, log: Path, cache: Path) -> None:
    def inside(*argv: str) -> None:
        _run(["chroot", str(tree), *argv], log=log, cache=cache, env={"PATH": recipe.PATH, "LANG": "C.UTF-8"})

    inside("groupadd", "--gid", str(recipe.UID), recipe.USER)
    inside(
        *("useradd", "--uid", str(recipe.UID), "--gid", str(recipe.UID), "--create-home", "--home-dir", recipe.HOME),
        *("--shell", "/bin/bash", recipe.USER),
    )
    inside("passwd", "--lock", "root")
    for certificate in host_certificates():
        shutil.copyfile(certificate, tree / "usr/local/share/ca-certificates" / f"host-{certificate.name}")
    inside("update-ca-certificates")
    for folder in ("opt", "usr/local/lib/node_modules"):
        inside("chown", "-R", f"{recipe.UID}:{recipe.UID}", f"/{folder}")
    # Byte code that any first import would write otherwise, into each machine's own disk and with each machine's time
    inside("python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "/usr/lib/python3.13")
    for pattern in (
        "var/lib/apt/lists/*",
        "var/cache/apt/*",
        "var/log/*.log",
        "var/log/apt/*",
        "var/cache/debconf/*-old",
    ):
        for path in tree.glob(pattern):
            if path.is_file():
                path.unlink()


# -- our own layer and the files of the image --------------------------------------------------------------------------


def _image(cache: Path, base: Path, progress: Progress, mirrors: list[sources.Source] | None) -> Path:
    name = current_hash(mirrors)
    with _under_construction(cache) as work:
        log = work / "build.log"
        kernel_version = (base / "boot" / "version").read_text()
        with _step(progress, "agent and settings"):
            tree = work / "tree"
            # Hard links: what the layer replaces is unlinked first, so the base stays as it is
            _run(["cp", "-al", str(base / "tree"), str(tree)], log=log, cache=cache)
            _layer(tree, base, kernel_version, log, cache)
        with _step(progress, "initramfs"):
            build_initramfs(work, base, work / "initrd.img")
            os.link(base / "boot" / "vmlinux", work / "vmlinux")
        with _step(progress, "root file system"):
            _root(tree, work / "root.img", log, cache)
        # Afterwards: tools write where they are asked, npm a cache of root's into the user's home
        with _step(progress, "package registries that its tools ask"):
            asked = registries.of_tree(tree)
        shutil.rmtree(tree)
        manifest = {
            "hash": name,
            "kernel": "vmlinux",
            "initrd": "initrd.img",
            "root": "root.img",
            "root_format": "raw",
            "cmdline": recipe.CMDLINE,
            "kernel_version": kernel_version,
            "registries": asked,
            "random": _random((work / "vmlinux").read_bytes()),
        }
        (work / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        log.unlink()
        for path in work.iterdir():
            path.chmod(0o444)
        work.chmod(0o755)
        place = cache / name
        work.rename(place)
        return place


def _random(kernel: bytes) -> dict[str, int]:
    """See vm.storage.images.RandomState."""
    try:
        found = kallsyms.symbols(kernel, ("base_crng", "_vdso_rng_data"))
        return {
            "base": kallsyms.physical(found["base_crng"]),
            "vdso": kallsyms.physical(found["_vdso_rng_data"]),
        }
    except (kallsyms.NoSymbols, KeyError) as error:
        raise BuildFailed(
            f"the kernel of the guest image is of another kind than this version knows: {error}"
        ) from error


# Written anew at every start, before the first command: in memory that takes a guest just restored a tenth of the time
_OF_ONE_START = ("hostname", "machine-id")


def _layer(tree: Path, base: Path, kernel_version: str, log: Path, cache: Path) -> None:
    for entry in FILES:
        path = tree / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(entry.text)
        path.chmod(entry.mode)
        os.chown(path, entry.owner, entry.owner)
    (tree / "app").symlink_to(recipe.HOME)
    for name in _OF_ONE_START:
        (tree / "etc" / name).unlink(missing_ok=True)
        (tree / "etc" / name).symlink_to(f"/run/{name}")
    place = tree / _LAYER_PLACE
    for source in agent_sources():
        target = place / "vm" / source.relative_to(RING)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    shutil.copyfile(RING / "image" / "init" / "pid1.py", place / "pid1.py")
    compiled = ["python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", f"/{_LAYER_PLACE}"]
    _run(["chroot", str(tree), *compiled], log=log, cache=cache, env={"PATH": recipe.PATH})
    modules = tree / "usr/lib/modules" / kernel_version
    for name in with_dependencies(base / "boot" / "modules", recipe.ROOT_MODULES):
        target = modules / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(base / "boot" / "modules" / name, target)
    for name in ("modules.builtin", "modules.order", "modules.builtin.modinfo"):
        shutil.copyfile(base / "boot" / "modules" / name, modules / name)
    _run(["chroot", str(tree), "depmod", kernel_version], log=log, cache=cache, env={"PATH": recipe.PATH})


def _root(tree: Path, target: Path, log: Path, cache: Path) -> None:
    whole = target.with_suffix(".whole")
    _run(
        [
            *("mke2fs", "-q", "-t", "ext4", "-L", "atoll-root", "-d", str(tree), "-m", "1", "-M", "/"),
            # Left to the guest, both would be written into every machine's overlay
            *("-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"),
            *("-J", "size=64", str(whole), f"{recipe.ROOT_GIB}G"),
        ],
        log=log,
        cache=cache,
    )
    # Inode tables and journal are allocated though nothing is in them: 200 MB that a copy leaves out
    _run(["cp", "--sparse=always", str(whole), str(target)], log=log, cache=cache)
    whole.unlink()


def main(argv: list[str] | None = None) -> int:
    """Entry point: prints the image's directory on stdout, progress on stderr; 1 after one clear line on failure."""
    parser = argparse.ArgumentParser(prog="python -m vm.image.build", description=__doc__)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument(
        "--mirror", action="append", metavar="LINE", help='instead of the host\'s: "URI SUITE COMPONENT..."'
    )
    options = parser.parse_args(argv)
    mirrors = [
        sources.Source(uri, suite, tuple(components))
        for uri, suite, *components in (line.removeprefix("deb ").split() for line in options.mirror or [])
    ]
    try:
        place = build(
            options.cache, lambda line: print(f"  {line}", file=sys.stderr, flush=True), mirrors=mirrors or None
        )
    except BuildFailed as failed:
        print(f"atoll: {failed}", file=sys.stderr)
        return 1
    print(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
