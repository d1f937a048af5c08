"""Keeps the chains of layers short that forks and snapshots make longer."""

from __future__ import annotations

import logging
from collections.abc import Callable

from vm.background import spawn
from vm.errors import VmError
from vm.node.keeper import Machine
from vm.node.layers import MAX_LAYERS, Layers
from vm.node.roster import Roster
from vm.node.snapshots import Snapshots
from vm.storage.layout import LayerId

log = logging.getLogger("atoll.node")


class Merging:
    """Merges the layers of machines that run; `needed` says which layers anybody needs."""

    def __init__(
        self, roster: Roster, layers: Layers, snapshots: Snapshots, needed: Callable[[], set[LayerId]]
    ) -> None:
        self._roster = roster
        self._layers = layers
        self._snapshots = snapshots
        self._needed = needed

    def if_long(self, machine: Machine) -> None:
        """Let the machine's layers be merged in the background, where they are too many."""
        if len(machine.record.disks) > MAX_LAYERS:
            spawn(self._merge(machine), name=f"merge {machine.record.machine}")

    async def _merge(self, machine: Machine) -> None:
        async with machine.busy:
            try:
                self._roster.require_running(machine)
                await self._layers.merge(machine.record)
            except VmError as error:
                log.warning("machine %s: its disk's layers are not merged yet: %s", machine.record.machine, error)
                return
            await self._roster.save_first(machine.record)  # before those that it named are removed
            await self._snapshots.merged(machine.record)
        await self._layers.sweep(self._needed)
