"""What an installation keeps on its disks, and which of it nothing needs any more."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from vm.host.provision import roots
from vm.host.run import CommandFailed, run
from vm.image.hashes import base_hash, current_hash


@dataclass(frozen=True, slots=True)
class Kept:
    """Something on disk: `size` in bytes as allocated; `waste` says why it can go, or is empty."""

    what: str
    path: Path
    size: int
    waste: str = ""


def allocated(path: Path) -> int:
    """Bytes a file or tree takes on its disk; images are sparse, so this is not their length."""
    if not path.is_dir():
        return path.lstat().st_blocks * 512
    total = 0
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            try:
                total += os.lstat(os.path.join(folder, name)).st_blocks * 512
            except FileNotFoundError:
                continue  # the installation goes on working while we look
    return total


def survey(*, data: Path, image_cache: Path) -> list[Kept]:
    """Everything kept, largest first. Reads only; blocks while it walks the trees."""
    used = {image for root in {data, *roots(image_cache)} for image in _used_images(root)}
    found = [_image(path, used) for path in image_cache.glob("[!.]*") if path.is_dir()]
    found += [Kept("a layer of disks or volumes", path, allocated(path)) for path in (data / "disks").glob("*.qcow2")]
    found += [
        Kept("the memory of a suspended machine", path, allocated(path))
        for path in (data / "machines").glob("*/memory.save")
    ]
    found += [Kept("a template for clones", path, allocated(path)) for path in (data / "templates").glob("*")]
    found += [
        Kept(what, data / name, allocated(data / name)) for name, what in _PARTS.items() if (data / name).exists()
    ]
    found += [Kept("an older log", path, allocated(path), "older log") for path in (data / "logs").glob("*.log.1")]
    return sorted(found, key=lambda kept: -kept.size)


_PARTS = {
    "db": "database",
    "queue": "job queue",
    "libvirt": "libvirt's state",
    "journal": "connections on their way to the database",
}


def _image(path: Path, used: set[Path]) -> Kept:
    size = allocated(path)
    if path.name.startswith("base-"):
        waste = "" if path.name == f"base-{base_hash()}" else "its recipe has changed"
        return Kept("a Debian tree images are built from", path, size, waste)
    if path.name == current_hash():
        return Kept("the guest image", path, size)
    if path.resolve() in used:
        return Kept("an older guest image that machines are based on", path, size)
    return Kept("an older guest image", path, size, "its recipe has changed, and no machine is based on it")


def _used_images(data: Path) -> set[Path]:
    used = set()
    # Beside the machines: where an earlier version kept them
    for disk in [*(data / "disks").glob("*.qcow2"), *(data / "machines").glob("*/*.qcow2")]:
        try:
            # -U: the machine may be running, which locks its disk
            said = json.loads(run(["qemu-img", "info", "-U", "--output=json", disk]).stdout)
        except CommandFailed as error:
            raise OSError(f"{disk} cannot be read ({error}): nothing is called waste before it can") from error
        # A layer over another one leads to an image by that one's own line
        if backing := said.get("full-backing-filename"):
            used.add(Path(backing).resolve().parent)
    return used


def remove(waste: list[Kept]) -> int:
    """Remove what `survey` called waste; the bytes freed."""
    freed = 0
    for kept in waste:
        if kept.path.is_dir():
            shutil.rmtree(kept.path)
        else:
            kept.path.unlink(missing_ok=True)
        freed += kept.size
    return freed
