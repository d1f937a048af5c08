"""Seals secret values for the database and opens them again. It knows keys, and nothing of rows.

The key file holds one key a line, the present one first; those below it only open. It is read at every use, so that a
change of the key needs no restart. A sealed value is one byte of format, 8 of its key's id, 12 of nonce, and what
AES-256-GCM made of it; it opens only together with the words that it was bound to.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.views.decorators.debug import sensitive_variables

from sandboxes.config import config
from sandboxes.errors import SecretsLocked

_FORMAT = b"\x01"
_ID, _NONCE = 8, 12
_TAG = 16
_LEAST = 32  # characters of a line: fewer are no key of ours
_PLACE = "keys/secrets.key in the data directory"


class Keyring:
    """The keys of one key file's text. SecretsLocked if it holds none."""

    def __init__(self, text: str) -> None:
        lines = [line.strip().encode() for line in text.splitlines() if line.strip()]
        if not lines or any(len(line) < _LEAST for line in lines):
            raise SecretsLocked(f"{_PLACE} is empty or damaged: put it back from a backup")
        self._keys = {
            _derive(line, b"atoll secrets key id", _ID): _derive(line, b"atoll secrets", 32) for line in lines
        }
        self._first = next(iter(self._keys))

    @property
    def current(self) -> str:
        """The id of the key that seals, in hex."""
        return self._first.hex()

    @sensitive_variables()
    def seal(self, value: str, *, bound_to: str) -> bytes:
        """The value, readable with the present key and the same words only."""
        nonce = os.urandom(_NONCE)
        sealed = AESGCM(self._keys[self._first]).encrypt(nonce, value.encode(), bound_to.encode())
        return _FORMAT + self._first + nonce + sealed

    @sensitive_variables()
    def open(self, sealed: bytes, *, bound_to: str, name: str) -> str:
        """The value again. SecretsLocked says of the secret `name` what is missing, and what to do."""
        key, nonce, rest = sealed[1 : 1 + _ID], sealed[1 + _ID : 1 + _ID + _NONCE], sealed[1 + _ID + _NONCE :]
        if sealed[:1] != _FORMAT or key not in self._keys:
            raise SecretsLocked(
                f"the secret {name} is sealed with the key {key.hex()}, which is not in {_PLACE}: "
                "put that key back from a backup, or set the secret anew"
            )
        try:
            return AESGCM(self._keys[key]).decrypt(nonce, rest, bound_to.encode()).decode()
        except InvalidTag:
            raise SecretsLocked(
                f"the sealed value of the secret {name} is damaged or another's: set the secret anew"
            ) from None


def size_of(sealed: bytes) -> int:
    """The bytes of a sealed value."""
    return len(sealed) - len(_FORMAT) - _ID - _NONCE - _TAG


def keyring() -> Keyring:
    """The installation's keys as they are now. SecretsLocked if they are missing."""
    try:
        return Keyring(config()["secrets_key"].read_text())
    except FileNotFoundError:
        raise SecretsLocked(f"{_PLACE} is missing: put it back from a backup") from None
    except (OSError, UnicodeDecodeError):
        raise SecretsLocked(f"{_PLACE} cannot be read: its mode is 0640, its group that of the service user") from None


def _derive(line: bytes, purpose: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=None, info=purpose).derive(line)
