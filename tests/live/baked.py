"""Templates that tests begin with: baked once on this machine, as any node bakes its own at its first start.

A test's data root is new, and would boot its machines for the want of a template, or bake one for half a minute. What
is kept here is a node's own work on this image and by this code, together with the authority that its memory trusts.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vm.host.run import run
from vm.image.build import DEFAULT_CACHE, build

CHECKOUT = Path(__file__).resolve().parents[2]
PLACE = DEFAULT_CACHE.parent / "test-templates"
PATIENCE = 300.0  # seconds for a boot and what follows, on a machine that has other things to do

Shape = tuple[int, int, int]
"""Memory in MiB, processors, disk in GiB."""


def seed(data: Path, shape: Shape) -> None:
    """Give a data root that no process has used yet a template of that shape, baked now if this is the first."""
    with _kept() as kept:
        if not (kept / _name(shape)).exists():
            _bake(kept, shape)
        _copy(kept / "keys", data / "keys")
        _copy(kept / _name(shape), data)


def _name(shape: Shape) -> str:
    return "-".join(map(str, shape))


@contextmanager
def _kept() -> Iterator[Path]:
    """The directory for this image and code, by one process at a time; what was kept for others goes."""
    PLACE.mkdir(mode=0o711, parents=True, exist_ok=True)
    kept = PLACE / _fingerprint()
    with (PLACE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for other in PLACE.iterdir():
            if other.is_dir() and other != kept:
                shutil.rmtree(other, ignore_errors=True)
        kept.mkdir(mode=0o711, exist_ok=True)
        yield kept


def _fingerprint() -> str:
    found = hashlib.sha256(build(DEFAULT_CACHE).name.encode())
    for path in sorted((CHECKOUT / "vm").rglob("*.py")):
        found.update(path.read_bytes())
    emulator = Path(os.path.realpath("/usr/bin/qemu-system-x86_64")).stat()
    found.update(f"{emulator.st_size} {emulator.st_mtime_ns}".encode())
    return found.hexdigest()[:16]


def _bake(kept: Path, shape: Shape) -> None:
    from tests.live.nodes import NodeProcess  # it seeds what it is told to, by this module

    node = NodeProcess(clones=True, warm=shape, pool_floor=0, pool_ceiling=0)
    try:
        if (kept / "keys").exists():
            _copy(kept / "keys", node.data / "keys")
        node.start()
        until = time.monotonic() + PATIENCE
        while not (baked := list((node.data / "templates").glob("[!.]*/template.json"))):
            assert time.monotonic() < until, node.log.read_text()[-3000:]
            time.sleep(0.2)
        (template,) = baked
        layer = json.loads(template.read_text())["disk"]
        building = kept / f".{_name(shape)}"
        shutil.rmtree(building, ignore_errors=True)
        for name in ("templates", "disks"):
            (building / name).mkdir(mode=0o711, parents=True)
        run(["cp", "-a", "--sparse=always", template.parent, building / "templates"])
        run(["cp", "-a", "--sparse=always", node.data / "disks" / f"{layer}.qcow2", building / "disks"])
        if not (kept / "keys").exists():
            keys = kept / ".keys"
            shutil.rmtree(keys, ignore_errors=True)
            keys.mkdir(mode=0o700)
            for path in (node.data / "keys").glob("egress-ca.*"):
                run(["cp", "-a", path, keys])
            keys.rename(kept / "keys")
        building.rename(kept / _name(shape))
    finally:
        node.close()


def _copy(what: Path, to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    run(["cp", "-a", "--sparse=always", *what.iterdir(), to])
