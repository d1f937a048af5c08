"""Makes the identifiers people and programs see; the official SDKs check the form of a sandbox id."""

from __future__ import annotations

import re
import secrets

from vm.egress.secrets import PREFIX

# i, l and o look like others.
ALPHABET = "0123456789abcdefghjkmnpqrstuvwxyz"
SANDBOX_ID = re.compile(rf"sbx_[a-z]{{3}}_[{ALPHABET}]{{20}}")


def sandbox_id(region: str) -> str:
    """A new random sandbox id of that region."""
    return f"sbx_{region}_" + "".join(secrets.choice(ALPHABET) for _ in range(20))


def secret_id() -> str:
    """A new random id of a secret; it says nothing of it."""
    return "sec_" + "".join(secrets.choice(ALPHABET) for _ in range(20))


def placeholder() -> str:
    """What a guest holds in place of a secret; nobody can guess another sandbox's."""
    return PREFIX + secrets.token_hex(24)


def machine_id() -> str:
    """A new machine id, as vm.api wants it."""
    return secrets.token_hex(16)
