"""A world for each test of the gate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.vm.egress.world import World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    made.records = {"good.example": "127.0.0.1", "other.example": "127.0.0.1", "inside.example": "10.0.0.7"}
    await made.start()
    yield made
    made.close()
    await asyncio.sleep(0.02)
