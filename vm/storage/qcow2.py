"""A machine's root disk: qcow2 layers over a read-only image. Argument builders, and the calls that use them."""

from __future__ import annotations

import json
import os
from pathlib import Path

from vm.errors import HostFull, HypervisorError
from vm.host.run import CommandFailed, run


def overlay_create_argv(overlay: Path, *, backing: Path, backing_format: str, size_gib: int) -> list[str]:
    """The qemu-img command that makes an empty overlay of `size_gib`."""
    return [
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        backing_format,
        "-b",
        str(backing),
        # lazy_refcounts: fewer metadata writes; after a crash QEMU repairs the counts by itself when it opens the disk
        "-o",
        "lazy_refcounts=on",
        str(overlay),
        f"{size_gib}G",
    ]


def overlay_create(
    overlay: Path, *, backing: Path, backing_format: str, size_gib: int, owner: tuple[int, int] | None
) -> None:
    """Make the overlay; complete under its name or not there at all. Raises HostFull on a full disk."""
    fresh = overlay.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    try:
        run(overlay_create_argv(fresh, backing=backing, backing_format=backing_format, size_gib=size_gib))
    except CommandFailed as error:
        fresh.unlink(missing_ok=True)
        if "No space left" in str(error):
            raise HostFull(f"no room for a disk on {overlay.parent.parent}") from error
        raise HypervisorError(str(error)) from error
    fresh.chmod(0o600)
    if owner is not None:
        os.chown(fresh, *owner)
    fresh.rename(overlay)


def layers_of(disk: Path) -> list[Path]:
    """The files of a disk, the one written to first and the image last; also while it is in use. HypervisorError."""
    try:
        said = json.loads(run(["qemu-img", "info", "-U", "--backing-chain", "--output=json", disk]).stdout)
    except CommandFailed as error:
        raise HypervisorError(str(error)) from error
    return [Path(layer["filename"]) for layer in said]
