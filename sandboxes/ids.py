"""Makes the identifiers people and programs see; the official SDKs check the form of a sandbox id."""

from __future__ import annotations

import re
import secrets

# i, l and o look like others.
ALPHABET = "0123456789abcdefghjkmnpqrstuvwxyz"
SANDBOX_ID = re.compile(rf"sbx_[a-z]{{3}}_[{ALPHABET}]{{20}}")


def sandbox_id(region: str) -> str:
    """A new random sandbox id of that region."""
    return f"sbx_{region}_" + "".join(secrets.choice(ALPHABET) for _ in range(20))


def machine_id() -> str:
    """A new machine id, as vm.api wants it."""
    return secrets.token_hex(16)
