"""The installation's own certificate authority, which its guests trust: made once, its key readable by root only.

It also signs what the gateway shows to visitors, where nobody gave another certificate.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vm.host.run import run

_LIFE = datetime.timedelta(days=3650)
_LEAF_LIFE = datetime.timedelta(days=365)  # renewed at a start, and no client takes one for much longer


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


def certificate_issue(
    *, authority: Path, authority_key: Path, names: Sequence[str], certificate: Path, key: Path, owner: tuple[int, int]
) -> None:
    """Write a certificate for these names and addresses, with its authority's behind it, and its key. OSError.

    One that is there is kept while it is for the same names and authority, and good for a month. Only `owner` (uid,
    gid) may read the key.
    """
    signer = x509.load_pem_x509_certificate(authority.read_bytes())
    wanted = x509.SubjectAlternativeName([_general_name(name) for name in names])
    if certificate.exists() and key.exists() and _is_good(certificate.read_bytes(), signer, wanted):
        return
    signer_key = serialization.load_pem_private_key(authority_key.read_bytes(), password=None)
    if not isinstance(signer_key, ec.EllipticCurvePrivateKey):
        raise ValueError("the authority's key is of another kind")
    private = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])]))
        .issuer_name(signer.subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(min(now + _LEAF_LIFE, signer.not_valid_after_utc))
        .add_extension(wanted, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        # Python's and OpenSSL's strict checks want it
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer_key.public_key()), critical=False)
        .sign(signer_key, hashes.SHA256())
    )
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain = [one.public_bytes(serialization.Encoding.PEM) for one in (made, signer)]
    certificate_place(chain=b"".join(chain), key=pem, certificate=certificate, key_file=key, owner=owner)


def certificate_place(*, chain: bytes, key: bytes, certificate: Path, key_file: Path, owner: tuple[int, int]) -> None:
    """Write a certificate with what it was signed by, and its key, which only `owner` may read. OSError."""
    _write(key_file, key, 0o600, owner)
    _write(certificate, chain, 0o644)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _is_good(pem: bytes, signer: x509.Certificate, wanted: x509.SubjectAlternativeName) -> bool:
    try:
        known = x509.load_pem_x509_certificate(pem)
        names = known.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        known.verify_directly_issued_by(signer)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False  # somebody else's, as one that was given
    left = known.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return names == wanted and left > datetime.timedelta(days=30)


@lru_cache(maxsize=256)
def authority_hash(certificate: str) -> str:
    """OpenSSL's hash of the name in a certificate (PEM): what directories of them are looked up by. CommandFailed."""
    return run(["openssl", "x509", "-hash", "-noout"], input_text=certificate).stdout.strip()


def _write(path: Path, data: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
    # Complete or not there
    fresh = path.with_suffix(path.suffix + ".new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if owner is not None:
        os.chown(fresh, *owner)
    fresh.chmod(mode)
    fresh.rename(path)
