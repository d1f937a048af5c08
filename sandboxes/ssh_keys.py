"""Public keys as OpenSSH writes them, and certificates for them; pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.dsa import DSAPublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    SSHCertificateBuilder,
    SSHCertificateType,
    load_ssh_public_key,
)

LONGEST = 16_384
_LEAST_RSA = 2048
# What is kept in a security key: cryptography reads none of them, and OpenSSH checks their touch
_HARDWARE = (b"sk-ssh-ed25519@openssh.com", b"sk-ecdsa-sha2-nistp256@openssh.com")
# A clock here and one there may differ by that much
_SKEW = timedelta(minutes=5)


class BadKey(ValueError):
    """Not a public key that is taken; the message says why."""


def parse(text: str) -> str:
    """The key of a line such as `ssh-ed25519 AAAA... comment`, without its comment. BadKey."""
    words = text.split()
    if len(text) > LONGEST or "\n" in text.strip() or len(words) < 2:
        raise BadKey("a public key is one line, such as the one in ~/.ssh/id_ed25519.pub")
    if "PRIVATE" in text:
        raise BadKey("this is a private key: keep it to yourself, and give the file that ends in .pub")
    kind, blob = words[0].encode("utf-8", "replace"), _blob(words[1])
    if kind in _HARDWARE:
        if not blob.startswith(struct.pack(">I", len(kind)) + kind):
            raise BadKey("this is no public key that OpenSSH could read")
        return f"{words[0]} {words[1]}"
    try:
        key = load_ssh_public_key(f"{words[0]} {words[1]}".encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadKey("this is no public key that OpenSSH could read") from error
    if isinstance(key, DSAPublicKey) or (isinstance(key, RSAPublicKey) and key.key_size < _LEAST_RSA):
        raise BadKey(f"keys of this kind are too weak: make an ed25519 one, or RSA of {_LEAST_RSA} bits and more")
    return f"{words[0]} {words[1]}"


def fingerprint(public_key: str) -> str:
    """As `ssh-keygen -l` shows it: `SHA256:...`."""
    digest = hashlib.sha256(_blob(public_key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def authority(secret: str, salt: str) -> tuple[Ed25519PrivateKey, str]:
    """An account's authority, derived anew whenever it signs; and its public key as a line."""
    seed = HKDF(algorithm=SHA256(), length=32, salt=salt.encode(), info=b"atoll ssh authority").derive(secret.encode())
    private = Ed25519PrivateKey.from_private_bytes(seed)
    return private, _line(private.public_key())


def certificate(*, public_key: str, signer: Ed25519PrivateKey, name: str, lifetime: timedelta, serial: int) -> str:
    """A certificate for a key, as a line for a file `id_...-cert.pub`. BadKey for one that cannot have one."""
    now = datetime.now(UTC)
    try:
        key = load_ssh_public_key(public_key.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadKey("a key of this kind cannot have a certificate here") from error
    builder: Any = (
        SSHCertificateBuilder()
        .public_key(key)  # type: ignore[arg-type]  # of kinds that `parse` lets in
        .type(SSHCertificateType.USER)
        .key_id(name.encode()[:200])
        .serial(serial)
        # Whom it is for is said by who signed it: an account's authority signs for that account alone
        .valid_for_all_principals()  # type: ignore[no-untyped-call]
        .valid_after(int((now - _SKEW).timestamp()))
        .valid_before(int((now + lifetime).timestamp()))
    )
    for permission in (b"permit-agent-forwarding", b"permit-port-forwarding", b"permit-pty"):
        builder = builder.add_extension(permission, b"")
    return str(builder.sign(signer).public_bytes().decode())


def _line(key: Ed25519PublicKey) -> str:
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _blob(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise BadKey("this is no public key that OpenSSH could read") from None
