"""Templates that lie on disk when a node starts: kept while everything they depend on is the same, else baked anew."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vm.errors import HostFull
from vm.libvirt import save_image, xml_build
from vm.libvirt.save_image import SaveImage
from vm.node import templates
from vm.node.config import NodeConfig
from vm.node.demand import Size
from vm.node.lanes import Lanes
from vm.node.templates import Template, Templates
from vm.storage.layout import Layout

SIZE = Size(1280, 2, 10)
DISK = "d" * 32


class Host:
    """What a node finds at its start, and may find changed at its next one."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.config = NodeConfig(
            data=root, key_file=root / "key", image_cache=root / "images", image="a" * 32, trust_host_store=False
        )
        self.qemu = (9_000_000, 7_002_000)
        self.accelerator = "tcg"
        for place in (root / "keys", root / "disks", root / "templates"):
            place.mkdir()
        self.layout.authority.write_text("the installation's")
        self.layout.disk(DISK).touch()
        self.image("a" * 32)

    def image(self, name: str) -> None:
        place = self.config.image_cache / name
        place.mkdir(parents=True)
        manifest = {"kernel": "k", "initrd": "i", "root": "r", "root_format": "raw", "cmdline": ""}
        (place / "manifest.json").write_text(json.dumps(manifest))
        self.config = NodeConfig(**{**{f: getattr(self.config, f) for f in self.config.__slots__}, "image": name})

    def versions(self) -> tuple[int, int]:
        return self.qemu

    @property
    def spares(self) -> Any:
        return SimpleNamespace(drop=self._dropped)

    def _dropped(self, disk: str) -> None:
        self.layout.spare(disk).unlink(missing_ok=True)

    def start(self, snapshots: set[str] | None = None) -> Templates:
        """A node's templates once it has looked at what lies there; it has these `snapshots`."""
        unused: Any = None
        conn: Any = self
        starter: Any = self
        found = Templates(self.config, self.layout, unused, Lanes(), conn, starter, self.accelerator)
        found.knows = lambda volume: volume in (snapshots or set())
        found.load()
        return found

    def bake(self, size: Size = SIZE, **more: Any) -> None:
        """Put a whole template where a bake by the present facts would."""
        key = self.start({size.root})._key(size)
        place = self.layout.template(key)
        place.mkdir(exist_ok=True)
        memory = save_image.header(SaveImage("<domain/>", b"", False, 0)) + b"memory"
        (place / "memory.save").write_bytes(memory)
        template = Template(key, size, self.config.image, DISK, hashlib.sha256(memory).hexdigest(), 1.0, **more)
        (place / "template.json").write_text(json.dumps(asdict(template)))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(tmp_path)
    made.bake()
    return made


def test_one_that_is_current_is_kept(host: Host) -> None:
    """The next start has it, and so the one after."""
    for _ in range(2):
        assert host.start().sizes() == [SIZE]


CHANGES: dict[str, Callable[[Host, pytest.MonkeyPatch], object]] = {
    "image": lambda host, patch: host.image("b" * 32),
    "QEMU": lambda host, patch: setattr(host, "qemu", (9_000_000, 8_000_000)),
    "libvirt": lambda host, patch: setattr(host, "qemu", (10_000_000, 7_002_000)),
    "accelerator": lambda host, patch: setattr(host, "accelerator", "kvm"),
    "authority": lambda host, patch: host.layout.authority.write_text("another"),
    "devices": lambda host, patch: patch.setattr(xml_build, "domain", lambda plan: "<another/>"),
    "a byte of its memory": lambda host, patch: _flip(next(host.layout.templates.glob("*/memory.save"))),
    "its disk": lambda host, patch: host.layout.disk(DISK).unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_one_of_something_else_goes(host: Host, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """Nothing of it is left, so the next machine boots and another is baked."""
    CHANGES[change](host, monkeypatch)
    assert host.start().sizes() == []
    assert list(host.layout.templates.iterdir()) == []


async def test_one_of_a_snapshot_goes_with_it(host: Host) -> None:
    """Kept while the snapshot is there and all its layers are, whatever the node's own image is by then."""
    root, below = "e" * 32, "f" * 32
    host.layout.disk(below).touch()
    host.bake(Size(1280, 2, 10, root), below=(below,))
    host.image("b" * 32)
    found = host.start(snapshots={root})
    assert [size.root for size in found.sizes()] == [root]
    assert found.layers() == {DISK, below}
    found.forget_root(root)
    assert found.sizes() == []
    async with asyncio.timeout(10):
        while list(host.layout.templates.iterdir()):
            await asyncio.sleep(0.01)
    host.bake(Size(1280, 2, 10, root), below=(below,))
    assert host.start(snapshots=set()).sizes() == []
    host.bake(Size(1280, 2, 10, root), below=(below,))
    host.layout.disk(below).unlink()
    assert host.start(snapshots={root}).sizes() == []


def test_memory_that_was_kept_is_never_thrown_away(host: Host) -> None:
    """Of another QEMU it is of no use, and is again when that comes back; only its snapshot's end is its own."""
    root = "e" * 32
    host.bake(Size(1280, 2, 10, root), live=True)
    host.qemu = (9_000_000, 8_000_000)
    assert host.start(snapshots={root}).sizes() == []
    host.qemu = (9_000_000, 7_002_000)
    found = host.start(snapshots={root})
    (size,) = found.sizes()
    template = found.find(size)
    assert template is not None
    for _ in range(5):
        assert not found.failed(template.key, "image")
    assert found.find(size) == template
    assert host.start(snapshots=set()).sizes() == []


def test_with_kvm_one_of_another_processor_goes(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its guest has seen the host's own."""
    host.accelerator = "kvm"
    host.bake()
    assert host.start().sizes() == [SIZE]
    monkeypatch.setattr(templates, "_cpu", lambda: "another")
    assert host.start().sizes() == []


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_what_could_not_be_built_leaves_nothing(host: Host) -> None:
    """A full disk is not made fuller by every try."""

    def make(place: Path) -> Template:
        (place / "memory.save").write_bytes(b"half of it")
        raise HostFull("no room")

    before = list(host.layout.templates.iterdir())
    with pytest.raises(HostFull):
        host.start()._build(SIZE, make)
    assert list(host.layout.templates.iterdir()) == before
