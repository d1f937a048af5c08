"""A disk: qcow2 layers, of which only the first is written to. Argument builders, and the calls that use them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vm.errors import HostFull, HypervisorError
from vm.host.run import CommandFailed, run

_COPYING = 3600.0  # seconds
GUEST_USER = 1000
"""The guest's user `app`, to whom a new volume belongs."""


def overlay_create_argv(overlay: Path, *, backing: Path, backing_format: str, size: str) -> list[str]:
    """The qemu-img command that makes an empty overlay of `size`, as qemu-img reads it: "10G", or bytes."""
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
        size,
    ]


def overlay_create(
    overlay: Path, *, backing: Path, backing_format: str, size_gib: int, owner: tuple[int, int] | None
) -> None:
    """Make the overlay; complete under its name or not there at all. Raises HostFull on a full disk."""
    with _whole(overlay, owner) as fresh:
        run(overlay_create_argv(fresh, backing=backing, backing_format=backing_format, size=f"{size_gib}G"))


def volume_over(volume: Path, *, backing: Path, backing_format: str, size: int, owner: tuple[int, int]) -> None:
    """An overlay of `size` bytes that outlives a loss of power, never smaller than a disk below it; else as
    `overlay_create`.
    """
    with _whole(volume, owner, durable=True) as fresh:
        if backing_format == "qcow2":
            size = max(size, _virtual_size(backing))
        run(overlay_create_argv(fresh, backing=backing, backing_format=backing_format, size=str(size)))


def overlay_like(overlay: Path, *, backing: Path, owner: tuple[int, int]) -> None:
    """An overlay as large as the qcow2 disk below it, which may be in use; else as `volume_over`."""
    with _whole(overlay, owner, durable=True) as fresh:
        run(overlay_create_argv(fresh, backing=backing, backing_format="qcow2", size="")[:-1])


def volume_merge(volume: Path, *, image: Path | None, image_format: str = "raw") -> None:
    """Copy into a disk that nobody uses what its lower layers hold, so that only the image is below it, or nothing.

    Interrupted at any point it shows what it showed. HostFull, HypervisorError.
    """
    below = ["-b", str(image), "-F", image_format] if image is not None else ["-b", ""]
    try:
        run(["qemu-img", "rebase", "-q", "-f", "qcow2", *below, volume], timeout=_COPYING)
    except CommandFailed as error:
        if "No space left" in str(error):
            raise HostFull(f"no room for a disk on {volume.parent.parent}") from error
        raise HypervisorError(str(error)) from error
    sync([volume])


def volume_resize(volume: Path, size: int) -> None:
    """Make a disk that nobody uses larger; one that is as large already stays. HostFull, HypervisorError."""
    try:
        said = json.loads(run(["qemu-img", "info", "--output=json", volume]).stdout)
        if int(said["virtual-size"]) < size:
            run(["qemu-img", "resize", "-q", "-f", "qcow2", volume, str(size)])
            sync([volume])
    except CommandFailed as error:
        if "No space left" in str(error):
            raise HostFull(f"no room for a disk on {volume.parent.parent}") from error
        raise HypervisorError(str(error)) from error


def volume_format_argv(raw: Path) -> list[str]:
    """The command that makes an empty ext4 on a sparse file, its root directory the guest user's."""
    # All that the kernel would write later in the background is written now: it would count as the volume's use
    options = f"root_owner={GUEST_USER}:{GUEST_USER},lazy_itable_init=0,lazy_journal_init=0"
    return ["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-E", options, str(raw)]


def volume_empty(volume: Path, *, size: int, owner: tuple[int, int]) -> None:
    """An empty file system of `size` bytes that outlives a loss of power; complete or not there. HostFull."""
    raw = volume.with_suffix(".raw")
    try:
        with _whole(volume, owner, durable=True) as fresh:
            with raw.open("wb") as file:
                file.truncate(size)
            run(volume_format_argv(raw))
            run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "lazy_refcounts=on", raw, fresh])
    finally:
        raw.unlink(missing_ok=True)


def _virtual_size(disk: Path) -> int:
    """Bytes that a guest sees of a qcow2 disk, which may be in use (its header: docs/interop/qcow2.rst of QEMU)."""
    with disk.open("rb") as file:
        header = file.read(32)
    if header[:4] != b"QFI\xfb":
        raise HypervisorError(f"{disk.name} is no disk")
    return int.from_bytes(header[24:32])


@contextmanager
def _whole(disk: Path, owner: tuple[int, int] | None, *, durable: bool = False) -> Iterator[Path]:
    """Where to make a disk that gets its name once it is complete. HostFull, HypervisorError."""
    fresh = disk.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    try:
        yield fresh
        fresh.chmod(0o600)
        if owner is not None:
            os.chown(fresh, *owner)
        if durable:
            sync([fresh])
        fresh.rename(disk)
        if durable:
            sync([disk.parent])
    except (CommandFailed, OSError) as error:
        fresh.unlink(missing_ok=True)
        if "No space left" in str(error):
            raise HostFull(f"no room for a disk on {disk.parent.parent}") from error
        raise HypervisorError(str(error)) from error


def sync(paths: Iterable[Path]) -> None:
    """Have these files and directories, as far as they exist, on the disk. HypervisorError where it fails."""
    for path in paths:
        try:
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise HypervisorError(f"{path.name} could not be written to the disk ({error.strerror})") from error


def layers_of(disk: Path) -> list[Path]:
    """The files of a disk, the one written to first and the image last; also while it is in use. HypervisorError."""
    try:
        said = json.loads(run(["qemu-img", "info", "-U", "--backing-chain", "--output=json", disk]).stdout)
    except CommandFailed as error:
        raise HypervisorError(str(error)) from error
    return [Path(layer["filename"]) for layer in said]
