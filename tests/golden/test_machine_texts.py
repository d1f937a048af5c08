"""Generated text is what somebody has read: a change shows as a difference of a file."""

from __future__ import annotations

import pytest

from tests.golden.machine_texts import HERE, TEXTS


@pytest.mark.parametrize("name", TEXTS)
def test_text_is_as_reviewed(name: str) -> None:
    """Each text equals its file; `python -m tests.golden.machine_texts` rewrites the files for review."""
    assert TEXTS[name]() == (HERE / name).read_text()
