"""Kernel modules in the order of their needs, and the initramfs that loads those which a start needs."""

from __future__ import annotations

import lzma
import shutil
from pathlib import Path

from vm.image import recipe
from vm.image.hashes import RING


def _dependencies(modules: Path) -> dict[str, list[str]]:
    lines = (modules / "modules.dep").read_text().splitlines()
    return {line.split(":", 1)[0]: line.split(":", 1)[1].split() for line in lines}


def with_dependencies(modules: Path, names: tuple[str, ...]) -> list[str]:
    """Paths below `modules`, each after what it depends on; what is built into the kernel has none."""
    needs = _dependencies(modules)
    by_name = {Path(path).name.split(".ko")[0].replace("_", "-"): path for path in needs}
    order: list[str] = []

    def add(path: str) -> None:
        if path not in order:
            for other in reversed(needs[path]):
                add(other)
            order.append(path)

    for name in names:
        path = by_name.get(name.replace("_", "-"))
        if path is not None:
            add(path)
    return order


def build_initramfs(work: Path, base: Path, target: Path) -> None:
    """Write it to `target`, from the kernel and busybox of the Debian tree at `base`."""
    root = work / "initramfs"
    for folder in ("bin", "dev", "proc", "root", "modules"):
        (root / folder).mkdir(parents=True)
    shutil.copyfile(base / "boot" / "busybox", root / "bin" / "busybox")
    (root / "bin" / "busybox").chmod(0o755)
    shutil.copyfile(RING / "image" / "init" / "initramfs", root / "init")
    (root / "init").chmod(0o755)
    order = []
    for name in with_dependencies(base / "boot" / "modules", recipe.BOOT_MODULES):
        content = (base / "boot" / "modules" / name).read_bytes()
        plain = Path(name).name.removesuffix(".xz")
        (root / "modules" / plain).write_bytes(lzma.decompress(content) if name.endswith(".xz") else content)
        order.append(plain)
    (root / "modules" / "order").write_text("\n".join(order) + "\n")
    target.write_bytes(_cpio(root))
    shutil.rmtree(root)


def _cpio(root: Path) -> bytes:
    """An archive in the kernel's `newc` format; not compressed: unpacking costs a TCG guest more than reading."""
    out = bytearray()

    def entry(number: int, name: str, mode: int, content: bytes) -> None:
        encoded = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        out.extend(b"070701" + b"".join(b"%08X" % field for field in fields) + encoded)
        out.extend(bytes(-len(out) % 4))
        out.extend(content)
        out.extend(bytes(-len(out) % 4))

    for number, path in enumerate(sorted(root.rglob("*")), start=1):
        content = path.read_bytes() if path.is_file() else b""
        entry(number, str(path.relative_to(root)), path.stat().st_mode, content)
    entry(0, "TRAILER!!!", 0, b"")
    return bytes(out)
