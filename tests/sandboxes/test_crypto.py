"""Sealed values open with their key and their words only, and an error says what to do and never a value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from sandboxes import crypto
from sandboxes.crypto import Keyring
from sandboxes.errors import SecretsLocked

OLD, NEW = "o" * 64, "n" * 64
TEXT = some.text(some.characters(exclude_categories=["Cs"]), max_size=2000)


@given(TEXT, TEXT)
def test_what_is_sealed_opens_again(value: str, words: str) -> None:
    keys = Keyring(OLD)
    sealed = keys.seal(value, bound_to=words)
    assert keys.open(sealed, bound_to=words, name="A") == value
    assert keys.seal(value, bound_to=words) != sealed
    if len(value) > 8:
        assert value.encode() not in sealed


@given(some.integers(0, 10_000), some.integers(1, 255))
def test_a_changed_byte_is_noticed(place: int, change: int) -> None:
    """Wherever it is: format, key, nonce or text."""
    keys = Keyring(OLD)
    sealed = bytearray(keys.seal("a value", bound_to="here"))
    sealed[place % len(sealed)] ^= change
    with pytest.raises(SecretsLocked):
        keys.open(bytes(sealed), bound_to="here", name="A")


def test_other_words_or_another_key_do_not_open() -> None:
    sealed = Keyring(OLD).seal("a value", bound_to="secret 1 of 1")
    for keys, words in ((Keyring(OLD), "secret 2 of 1"), (Keyring(NEW), "secret 1 of 1")):
        with pytest.raises(SecretsLocked) as refused:
            keys.open(sealed, bound_to=words, name="API_KEY")
        assert "API_KEY" in refused.value.message
        assert "a value" not in refused.value.message
    assert Keyring(OLD).current in str(_refusal(Keyring(NEW), sealed))


def _refusal(keys: Keyring, sealed: bytes) -> SecretsLocked:
    with pytest.raises(SecretsLocked) as refused:
        keys.open(sealed, bound_to="secret 1 of 1", name="API_KEY")
    return refused.value


def test_the_first_key_seals_and_all_open() -> None:
    old = Keyring(OLD).seal("a value", bound_to="here")
    both = Keyring(f"{NEW}\n{OLD}\n")
    assert both.open(old, bound_to="here", name="A") == "a value"
    assert both.current == Keyring(NEW).current != Keyring(OLD).current
    assert Keyring(NEW).open(both.seal("another", bound_to="here"), bound_to="here", name="A") == "another"


@pytest.mark.parametrize("text", ["", "\n \n", "short", f"{OLD}\nshort"])
def test_a_file_without_keys_is_told(text: str) -> None:
    with pytest.raises(SecretsLocked, match="empty or damaged: put it back"):
        Keyring(text)


def test_a_missing_file_is_told_without_its_path(settings: Any, tmp_path: Path) -> None:
    settings.ATOLL = {**settings.ATOLL, "secrets_key": tmp_path / "gone"}
    with pytest.raises(SecretsLocked, match="is missing: put it back") as refused:
        crypto.keyring()
    assert str(tmp_path) not in refused.value.message


def test_a_changed_file_needs_no_restart(settings: Any, tmp_path: Path) -> None:
    place = tmp_path / "secrets.key"
    settings.ATOLL = {**settings.ATOLL, "secrets_key": place}
    place.write_text(OLD)
    sealed = crypto.keyring().seal("a value", bound_to="here")
    place.write_text(f"{NEW}\n{OLD}")
    assert crypto.keyring().open(sealed, bound_to="here", name="A") == "a value"
    assert crypto.keyring().current == Keyring(NEW).current
