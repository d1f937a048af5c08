"""A save that takes too long is broken off: it would end the machine after somebody was told that it runs on."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vm.errors import HypervisorError
from vm.libvirt import domains
from vm.node import suspending
from vm.node.lanes import Lanes, TooSlow
from vm.node.suspending import Suspending


@pytest.mark.parametrize("at_the_last_moment", [False, True])
async def test_a_save_that_is_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_the_last_moment: bool) -> None:
    """The domain is there still and the save has failed, or it was done after all and counts as that."""
    aborted, there = threading.Event(), ["running"]

    def save(*_: Any) -> None:
        assert aborted.wait(30)
        if not at_the_last_moment:
            raise HypervisorError("aborted")
        there.clear()

    monkeypatch.setattr(suspending, "SAVING", 0.05)
    monkeypatch.setattr(domains, "domain_save", save)
    monkeypatch.setattr(domains, "domain_save_abort", lambda *_: aborted.set())
    monkeypatch.setattr(domains, "domain_state", lambda *_: there[0] if there else None)
    place: Any = SimpleNamespace(config=None, layout=None, names=None, lanes=Lanes(), conn=None)
    nothing: Any = None
    made = Suspending(place, nothing, nothing, nothing, nothing, nothing, nothing)
    if at_the_last_moment:
        await made._save("m", tmp_path / "memory")
    else:
        with pytest.raises(TooSlow):
            await made._save("m", tmp_path / "memory")
    assert aborted.is_set()
    place.lanes.close()
