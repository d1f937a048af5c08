"""Pages without a built front end: the tags that name its files are all that is missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django_vite.core.asset_loader import DjangoViteAssetLoader


@pytest.fixture(autouse=True)
def front_end_not_built(settings: Any) -> Iterator[None]:
    """Vite's development mode names sources instead of looking into a manifest."""
    settings.DJANGO_VITE = {"default": {"dev_mode": True}}
    before, DjangoViteAssetLoader._instance = DjangoViteAssetLoader._instance, None
    yield
    DjangoViteAssetLoader._instance = before
