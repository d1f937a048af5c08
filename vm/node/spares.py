"""What the next clone of a template is made of, laid ready while nobody waits for it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from vm.errors import HypervisorError, VmError
from vm.libvirt import save_image
from vm.node.lanes import Lanes
from vm.node.process import after_others
from vm.storage.layout import LayerId, Layout
from vm.storage.qcow2 import overlay_create

_LONGER = 4096  # bytes: what another machine's names may be longer
_PATIENCE = 30.0  # seconds


class Spares:
    """One empty layer and one copy of a memory image for each template; a clone only gives them names of its own."""

    def __init__(self, layout: Layout, lanes: Lanes, scratch: Path, owner: tuple[int, int]) -> None:
        self._layout = layout
        self._lanes = lanes
        self._scratch = scratch
        self._owner = owner

    def image(self, disk: LayerId) -> Path:
        """The copy of the image of the template with that disk: one that is baked anew has its key, but another."""
        return self._scratch / f"{disk}.spare"

    async def lay(self, template: str, *, disk: LayerId, size_gib: int) -> None:
        """Have them ready: an empty layer over the template's `disk`, and a copy of its image. Repeatable."""
        with suppress(HypervisorError):
            await self._lanes.run("spare", lambda: self._lay(template, disk, size_gib), deadline=_PATIENCE)

    @after_others()
    def _lay(self, template: str, disk: LayerId, size_gib: int) -> None:
        overlay = self._layout.spare(disk)
        if not overlay.exists():
            with suppress(VmError):  # the clone makes its own then, or says why not
                backing = self._layout.disk(disk)
                overlay_create(overlay, backing=backing, backing_format="qcow2", size_gib=size_gib, owner=self._owner)
        source, spare = self._layout.template(template) / "memory.save", self.image(disk)
        if spare.exists():
            return
        fresh = spare.with_suffix(".new")
        try:
            save_image.clone(source, fresh, save_image.read(source).xml, spare=_LONGER)
            fresh.rename(spare)
        except (OSError, ValueError):
            # Without a spare it takes longer, and whoever starts from the template says what is wrong with it
            fresh.unlink(missing_ok=True)

    def drop(self, disk: LayerId) -> None:
        """The template with that disk is no more."""
        self.image(disk).unlink(missing_ok=True)
        self._layout.spare(disk).unlink(missing_ok=True)
