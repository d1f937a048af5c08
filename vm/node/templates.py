"""Templates: the memory of a machine that has just booted, with the disk it knows, from which clones are restored.

A template is good for one image, size, QEMU, libvirt and CPU; all of that is in its key, so that it is baked anew when
any of it changes. A clone's disk lies over the template's, which therefore stays as long as any disk needs it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vm.api import Identity, MachineSpec, MachineState, VolumeId
from vm.background import spawn
from vm.errors import HypervisorError, VmError
from vm.guest.channel import Channel
from vm.host.kvm import boot_id
from vm.libvirt import domains, save_image, xml_build
from vm.libvirt.connection import Connection
from vm.node.asking import ask, pid_of
from vm.node.config import NodeConfig
from vm.node.demand import Size
from vm.node.lanes import Lanes
from vm.node.records import Names, Record, write_whole
from vm.node.start import Starter, authorities
from vm.storage.images import image_find
from vm.storage.layout import LayerId, Layout
from vm.storage.qcow2 import sync

log = logging.getLogger("atoll.node")

_SETTLE = 1.0  # seconds a guest is given after its boot to finish what it does by itself
_WARM = ("true", "sh -c :", "python3 -c pass")  # first runs read files; whoever is cloned has them in memory
_KEEPING = 600.0  # seconds that copying a machine's memory may take
_TRIES = 2  # starts from a template that may fail, at the agent, until it is held to be broken


@dataclass(frozen=True, slots=True)
class Template:
    """One template on disk. `disk` is the layer that its memory knows, over `below`; `digest` its image's SHA-256.

    A `live` one is not baked but the memory of somebody's machine, kept with a snapshot: it cannot be made again.
    """

    key: str
    size: Size
    image: str
    disk: LayerId
    digest: str
    baked_at: float
    below: tuple[LayerId, ...] = ()
    live: bool = False

    @property
    def layers(self) -> list[LayerId]:
        """Of its disk, from the top."""
        return [self.disk, *self.below]


class Templates:
    """Finds, bakes and discards templates of this node's image."""

    def __init__(
        self,
        config: NodeConfig,
        layout: Layout,
        names: Names,
        lanes: Lanes,
        conn: Connection,
        starter: Starter,
        accelerator: str,
    ) -> None:
        self._config = config
        self._layout = layout
        self._names = names
        self._lanes = lanes
        self._conn = conn
        self._starter = starter
        self._accelerator = accelerator
        self._facts: dict[str, Any] = {}
        self._failures: dict[str, int] = {}
        self._baking: Record | None = None
        self._known: dict[str, Template] = {}
        self._bakes_failed: dict[Size, float] = {}
        self._looked_at: set[str] = set()
        # Set by whoever has volumes: the image and the layers of a machine that boots from a snapshot
        self.root: Callable[[VolumeId, LayerId], Awaitable[tuple[str, list[LayerId]]]] = _no_root
        self.knows: Callable[[VolumeId], bool] = lambda volume: True

    # -- knowing

    def load(self) -> None:
        """Look at what lies on disk: keep what is whole and current. Before all else; blocks, some 0.3 s for each."""
        image = image_find(self._config.image_cache, self._config.image).hash
        self._facts = _facts(self._conn, self._accelerator, image, self._config.tb_cache_mib)
        # Its clones are told nothing of whom to trust: they remember it
        self._facts["trusts"] = authorities(self._config, self._layout)
        self._layout.templates.mkdir(mode=0o711, exist_ok=True)
        for place in self._layout.templates.iterdir():
            template = _read(place)
            current = template is not None and template.key == self._key(template.size)
            if template is not None and (not template.size.root or self.knows(template.size.root)):
                if current and (template.live or self._whole(template)):
                    self._known[template.key] = template
                    continue
                if template.live:
                    # It is of use again with the QEMU it was made with
                    log.warning("the memory kept with snapshot %s is of another QEMU or CPU", template.size.root)
                    continue
            log.info("removing the template %s: it is not whole, or of another image, QEMU or CPU", place.name)
            shutil.rmtree(place, ignore_errors=True)

    def find(self, size: Size) -> Template | None:
        """The template for machines of that size, if there is one."""
        return self._known.get(self._key(size))

    def sizes(self) -> list[Size]:
        """Of which sizes there are templates."""
        return [template.size for template in self._known.values()]

    def layers(self) -> set[LayerId]:
        """The layers that templates need."""
        layers = {layer for template in self._known.values() for layer in template.layers}
        return layers | set(self._baking.disks if self._baking is not None else ())

    def bodies(self) -> set[str]:
        """The body of the machine that is being baked from, if any."""
        return {self._baking.body} if self._baking is not None else set()

    def may_bake(self, size: Size) -> bool:
        """Whether the last try, if it failed, is long enough ago."""
        return time.monotonic() - self._bakes_failed.get(size, -1e9) > 60

    # -- changing

    async def bake(self, size: Size) -> None:
        """Boot a machine of that size, save its memory, keep it. A failure is logged, and nothing is left of it."""
        began = time.monotonic()
        body = secrets.token_hex(16)
        record = Record(
            spec=MachineSpec("", size.memory_mib, size.vcpus, size.disk_gib, Identity("sandbox"), root=size.root),
            image=image_find(self._config.image_cache, self._config.image).hash,
            state=MachineState.STARTING,
            since=time.time(),
            boot_id=boot_id(),
            body=body,
            disks=[secrets.token_hex(16)],
        )
        self._baking = record
        try:
            if size.root:
                record.image, record.disks = await self.root(size.root, record.disks[0])
            template = await self._bake(record, size)
        except (VmError, OSError, TimeoutError) as error:
            self._bakes_failed[size] = time.monotonic()
            log.warning("no template for %s: %s", size, error)
            await self._starter.release(record)
            self._layout.disk(record.disks[0]).unlink(missing_ok=True)
        except asyncio.CancelledError:
            await self._starter.release(record)
            raise
        else:
            self._known[template.key] = template
            log.info("baked a template for %s in %.1f s", size, time.monotonic() - began)
            self._forget_oldest()
        finally:
            self._baking = None

    async def _bake(self, record: Record, size: Size) -> Template:
        channel = await self._starter.start(record, lambda up, why: None)
        try:
            if size.root:
                with suppress(VmError):  # it then has the room that it had
                    await ask(channel, "volume.grow", {"serial": ""})
            await warm_up(channel)
            await asyncio.sleep(_SETTLE)
            async with asyncio.timeout(30):
                await ask(channel, "sync")
        finally:
            await channel.close()
        name = self._names.of(record.body)

        def save(building: Path) -> Template:
            memory = building / "memory.save"
            domains.domain_save(self._conn, name, memory)
            self._layout.disk(record.disks[0]).chmod(0o400)
            top, *below = record.disks
            return Template(self._key(size), size, record.image, top, _digest(memory), time.time(), tuple(below))

        template = await self._lanes.run(name, lambda: self._build(size, save), deadline=120)
        await self._starter.release(record)  # the namespace and the socket; the domain has ended
        return template

    def _build(self, size: Size, make: Callable[[Path], Template]) -> Template:
        """A template's directory, whole or not there; `make` puts its memory into the one it is given. Blocks."""
        key = self._key(size)
        building, place = self._layout.templates / f".{key}", self._layout.template(key)
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(mode=0o700)
        try:
            template = make(building)
            write_whole(building / "template.json", asdict(template))
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
        shutil.rmtree(place, ignore_errors=True)
        building.rename(place)
        return template

    # -- memory of somebody's machine

    async def keep(self, size: Size, image: str, layers: list[LayerId], memory: Path, names: Path) -> None:
        """Have machines of that size go on from this memory, whose disk are these layers. OSError, HostFull."""

        def copy(building: Path) -> Template:
            kept = building / "memory.save"
            save_image.clone(memory, kept, save_image.read(memory).xml)
            with suppress(FileNotFoundError):  # its memory knows which name each virtual address stands for
                shutil.copyfile(names, building / "names")
            sync([kept, building])
            top, *below = layers
            return Template(self._key(size), size, image, top, _digest(kept), time.time(), tuple(below), live=True)

        def build() -> Template:
            template = self._build(size, copy)
            sync([self._layout.templates])
            return template

        template = await self._lanes.run(f"memory of {size.root}", build, deadline=_KEEPING, slow=True)
        self._lanes.forget(f"memory of {size.root}")
        self._looked_at.add(template.key)
        self._known[template.key] = template

    def kept_mib(self, template: Template) -> int:
        """How much memory was kept, in MiB."""
        try:
            return (self._layout.template(template.key) / "memory.save").stat().st_size // 2**20
        except OSError:
            return 0  # `lend` says what is wrong with it

    async def lend(self, template: Template, image: Path, names: Path) -> None:
        """Copy the memory of a live one to `image`, for one machine to go on from. HypervisorError if it is damaged."""

        def copy() -> None:
            place = self._layout.template(template.key)
            if template.key not in self._looked_at and not self._whole(template):
                raise HypervisorError("the memory that was kept is damaged")
            self._looked_at.add(template.key)
            try:
                save_image.clone(place / "memory.save", image, save_image.read(place / "memory.save").xml)
                with suppress(FileNotFoundError):
                    shutil.copyfile(place / "names", names)
            except (OSError, ValueError) as error:
                image.unlink(missing_ok=True)
                raise HypervisorError(f"the memory that was kept cannot be read: {error}") from error

        await self._lanes.run(f"memory of {template.size.root}", copy, deadline=_KEEPING, slow=True)

    def forget_root(self, root: VolumeId) -> None:
        """The snapshot is no more, and neither is what was made of it."""
        for template in list(self._known.values()):
            if template.size.root == root:
                self.discard(template.key)

    def failed(self, key: str, stage: str) -> bool:
        """A start from it did not succeed at that stage; whether that was the end of the template."""
        if key in self._known and self._known[key].live:
            return False  # there is no other
        self._failures[key] = self._failures.get(key, 0) + (_TRIES if stage in ("image", "domain") else 1)
        if self._failures[key] < _TRIES:
            return False
        log.warning("the template %s is discarded: a machine could not be started from it", key)
        self.discard(key)
        return True

    def worked(self, key: str) -> None:
        """A machine was started from it."""
        self._failures.pop(key, None)

    def discard(self, key: str) -> None:
        """Use it no more. Its disk goes when no clone needs it any more."""
        if not key:
            raise ValueError("a template has a key")
        self._failures.pop(key, None)
        if (template := self._known.pop(key, None)) is not None:
            self._starter.spares.drop(template.disk)
        # Out of the way of one that is baked anew; hundreds of megabytes are no work for the event loop
        past = self._layout.templates / f".{secrets.token_hex(8)}"
        with suppress(OSError):
            self._layout.template(key).rename(past)
            spawn(self._gone(past), name=f"template {key}")

    async def _gone(self, place: Path) -> None:
        await self._lanes.run("memory", lambda: shutil.rmtree(place, ignore_errors=True), deadline=_KEEPING, slow=True)

    def _forget_oldest(self) -> None:
        # The warm size is asked for most, whenever it was baked
        warm = warm_size(self._config)
        others = [one for one in self._known.values() if one.size != warm and not one.live]
        for template in sorted(others, key=lambda template: template.baked_at)[: -self._config.templates_kept or None]:
            self.discard(template.key)

    def _key(self, size: Size) -> str:
        # What a snapshot lies over is the snapshot's business
        facts = {**self._facts, "image": ""} if size.root else self._facts
        return hashlib.sha256(json.dumps({**facts, **asdict(size)}, sort_keys=True).encode()).hexdigest()[:32]

    def _whole(self, template: Template) -> bool:
        memory = self._layout.template(template.key) / "memory.save"
        try:
            save_image.read(memory)
            there = all(self._layout.disk(layer).exists() for layer in template.layers)
            return there and _digest(memory) == template.digest
        except (OSError, ValueError):
            return False


async def _no_root(root: VolumeId, own: LayerId) -> tuple[str, list[LayerId]]:
    raise HypervisorError(f"there is no snapshot {root} here")


def warm_size(config: NodeConfig) -> Size | None:
    """The size for which there is always a template."""
    return Size(*config.warm) if config.warm is not None and config.clones else None


def size_of(record: Record) -> Size:
    """Of which size a template for it would be; of one that boots from a volume there is none."""
    return Size(record.memory_mib, record.spec.vcpus, record.spec.disk_gib, record.spec.root)


async def warm_up(channel: Channel, commands: tuple[str, ...] = _WARM) -> None:
    """Let a guest run what everybody runs first, before it is anybody's. VmError, TimeoutError."""
    async with asyncio.timeout(60):
        for command in commands:
            program, *arguments = command.split(" ")
            params = {"command": program, "args": arguments, "stdin": "null", "stdout": "null", "stderr": "null"}
            pid = pid_of(await ask(channel, "spawn", params))
            await ask(channel, "processWait", {"pid": pid})


def _facts(conn: Connection, accelerator: str, image: str, tb_cache_mib: int) -> dict[str, Any]:
    """Everything besides the size that a template depends on."""
    shape = xml_build.domain(
        xml_build.DomainPlan("", "", accelerator, 0, 0, Path(), Path(), "", Path(), Path(), "", "", tb_cache_mib)
    )
    return {
        "image": image,
        "accelerator": accelerator,
        "versions": conn.versions(),
        # With KVM a guest sees the host's own processor
        "cpu": _cpu() if accelerator == "kvm" else "",
        "shape": shape,
        "warm": _WARM,
        "format": 1,
    }


def _cpu() -> str:
    wanted = ("vendor_id", "model name", "stepping", "microcode", "flags")
    lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(wanted))


def _read(place: Path) -> Template | None:
    try:
        data = json.loads((place / "template.json").read_text())
        return Template(**{**data, "size": Size(**data["size"]), "below": tuple(data.get("below", ()))})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
