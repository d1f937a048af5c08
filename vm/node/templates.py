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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vm.api import Identity, MachineSpec, MachineState
from vm.errors import VmError
from vm.guest.calls import call
from vm.guest.channel import Channel
from vm.host.kvm import boot_id
from vm.libvirt import domains, save_image, xml_build
from vm.libvirt.connection import Connection
from vm.node.config import NodeConfig
from vm.node.demand import Size
from vm.node.lanes import Lanes
from vm.node.records import Names, Record, write_whole
from vm.node.start import Starter, authorities, expect_ok
from vm.storage.images import image_find
from vm.storage.layout import LayerId, Layout

log = logging.getLogger("atoll.node")

_SETTLE = 1.0  # seconds a guest is given after its boot to finish what it does by itself
_WARM = ("true", "sh -c :", "python3 -c pass")  # first runs read files; whoever is cloned has them in memory
_TRIES = 2  # starts from a template that may fail, at the agent, until it is held to be broken


@dataclass(frozen=True, slots=True)
class Template:
    """One template on disk. `disk` is the layer that its memory knows; `digest` is the memory image's SHA-256."""

    key: str
    size: Size
    image: str
    disk: LayerId
    digest: str
    baked_at: float


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
            if template is not None and template.key == self._key(template.size) and self._whole(template):
                self._known[template.key] = template
            else:
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
        layers = {template.disk for template in self._known.values()}
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
            spec=MachineSpec("", size.memory_mib, size.vcpus, size.disk_gib, Identity("sandbox")),
            image=image_find(self._config.image_cache, self._config.image).hash,
            state=MachineState.STARTING,
            since=time.time(),
            boot_id=boot_id(),
            body=body,
            disks=[secrets.token_hex(16)],
        )
        self._baking = record
        try:
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
            await warm_up(channel)
            await asyncio.sleep(_SETTLE)
            async with asyncio.timeout(30):
                await expect_ok(call(await channel.open(), "sync"))
        finally:
            await channel.close()
        key = self._key(size)
        building = self._layout.templates / f".{key}"
        place = self._layout.template(key)
        name = self._names.of(record.body)

        def save() -> Template:
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir(mode=0o700)
            memory = building / "memory.save"
            domains.domain_save(self._conn, name, memory)
            self._layout.disk(record.disks[0]).chmod(0o400)
            template = Template(key, size, record.image, record.disks[0], _digest(memory), time.time())
            write_whole(building / "template.json", asdict(template))
            shutil.rmtree(place, ignore_errors=True)
            building.rename(place)
            return template

        template = await self._lanes.run(name, save, deadline=120)
        await self._starter.release(record)  # the namespace and the socket; the domain has ended
        return template

    def failed(self, key: str, stage: str) -> bool:
        """A start from it did not succeed at that stage; whether that was the end of the template."""
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
            self._starter.drop_spare(template.disk)
        shutil.rmtree(self._layout.template(key), ignore_errors=True)

    def _forget_oldest(self) -> None:
        # The warm size is asked for most, whenever it was baked
        others = [template for template in self._known.values() if template.size != warm_size(self._config)]
        for template in sorted(others, key=lambda template: template.baked_at)[: -self._config.templates_kept or None]:
            self.discard(template.key)

    def _key(self, size: Size) -> str:
        return hashlib.sha256(json.dumps({**self._facts, **asdict(size)}, sort_keys=True).encode()).hexdigest()[:32]

    def _whole(self, template: Template) -> bool:
        memory = self._layout.template(template.key) / "memory.save"
        try:
            save_image.read(memory)
            return self._layout.disk(template.disk).exists() and _digest(memory) == template.digest
        except (OSError, ValueError):
            return False


def warm_size(config: NodeConfig) -> Size | None:
    """The size for which there is always a template."""
    return Size(*config.warm) if config.warm is not None and config.clones else None


def size_of(record: Record) -> Size:
    """Of which size a template for it would be."""
    return Size(record.memory_mib, record.spec.vcpus, record.spec.disk_gib)


async def warm_up(channel: Channel, commands: tuple[str, ...] = _WARM) -> None:
    """Let a guest run what everybody runs first, before it is anybody's. VmError, TimeoutError."""
    async with asyncio.timeout(60):
        for command in commands:
            program, *arguments = command.split(" ")
            params = {"command": program, "args": arguments, "stdin": "null", "stdout": "null", "stderr": "null"}
            started = await expect_ok(call(await channel.open(), "spawn", params))
            await expect_ok(call(await channel.open(), "processWait", {"pid": started["pid"]}))


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
        return Template(**{**data, "size": Size(**data["size"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
