"""Makes the identifiers people and programs see; the official SDKs check the form of a sandbox id."""

from __future__ import annotations

import re
import secrets
import uuid

from vm.egress.secrets import PREFIX

# i, l and o look like others.
ALPHABET = "0123456789abcdefghjkmnpqrstuvwxyz"
SANDBOX_ID = re.compile(rf"sbx_[a-z]{{3}}_[{ALPHABET}]{{20}}")


def sandbox_id(region: str) -> str:
    """A new random sandbox id of that region."""
    return f"sbx_{region}_" + "".join(secrets.choice(ALPHABET) for _ in range(20))


def volume_id(region: str) -> str:
    """A new random volume id of that region."""
    return f"vol_{region}_" + "".join(secrets.choice(ALPHABET) for _ in range(20))


def snapshot_id(region: str) -> str:
    """A new random snapshot id of that region."""
    return f"snp_{region}_" + "".join(secrets.choice(ALPHABET) for _ in range(20))


def checkpoint_id(region: str) -> str:
    """A new random checkpoint id of that region."""
    return f"cpt_{region}_" + "".join(secrets.choice(ALPHABET) for _ in range(20))


def checkpoint_slug() -> str:
    """What nobody calls it by: volumes, snapshots and checkpoints share one namespace of slugs."""
    return "checkpoint-" + "".join(secrets.choice(ALPHABET) for _ in range(20))


def secret_id() -> str:
    """A new random id of a secret; it says nothing of it."""
    return "sec_" + "".join(secrets.choice(ALPHABET) for _ in range(20))


def app_id() -> str:
    """A new random id of an app, a layer or a variable of theirs, a UUID as clients expect."""
    return str(uuid.uuid4())


def app_slug() -> str:
    """A slug for an app that nobody named."""
    return "app-" + "".join(secrets.choice(ALPHABET) for _ in range(12))


def exposure_id() -> str:
    """A new random id of an exposure; it says nothing of its address."""
    return "exp_" + "".join(secrets.choice(ALPHABET) for _ in range(20))


def exposure_name() -> str:
    """What nobody can guess, of 160 bits: a label of a host name, and a user name."""
    return secrets.choice("abcdefghjkmnpqrstuvwxyz") + "".join(secrets.choice(ALPHABET) for _ in range(31))


def placeholder() -> str:
    """What a guest holds in place of a secret; nobody can guess another sandbox's."""
    return PREFIX + secrets.token_hex(24)


def machine_id() -> str:
    """A new id of a machine or of a volume, as vm.api wants it."""
    return secrets.token_hex(16)
