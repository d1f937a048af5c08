"""The installation's own certificate authority, which its guests trust: made once, its key readable by root only."""

from __future__ import annotations

import datetime
import os
import secrets
from functools import lru_cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from vm.host.run import run

_LIFE = datetime.timedelta(days=3650)


def authority_make(*, certificate: Path, key: Path) -> None:
    """Write both, where they are not there already. OSError."""
    if certificate.exists() and key.exists():
        return
    private = ec.generate_private_key(ec.SECP256R1())
    # A name of its own: somebody may trust the authorities of several installations
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Atoll egress {secrets.token_hex(4)}")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + _LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .sign(private, hashes.SHA256())
    )
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(key, pem, 0o600)
    _write(certificate, made.public_bytes(serialization.Encoding.PEM), 0o644)


@lru_cache(maxsize=256)
def authority_hash(certificate: str) -> str:
    """OpenSSL's hash of the name in a certificate (PEM): what directories of them are looked up by. CommandFailed."""
    return run(["openssl", "x509", "-hash", "-noout"], input_text=certificate).stdout.strip()


def _write(path: Path, data: bytes, mode: int) -> None:
    # Complete or not there
    fresh = path.with_suffix(path.suffix + ".new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.chmod(mode)
    fresh.rename(path)
