"""The installation's authority: made once, its key for root alone, and good for hosts only."""

from __future__ import annotations

import stat
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from vm.host.authority import authority_make


def test_it_is_made_once_and_its_key_is_nobody_elses(tmp_path: Path) -> None:
    certificate, key = tmp_path / "ca.pem", tmp_path / "ca.key"
    authority_make(certificate=certificate, key=key)
    first = (certificate.read_bytes(), key.read_bytes())
    authority_make(certificate=certificate, key=key)
    assert (certificate.read_bytes(), key.read_bytes()) == first
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    made = x509.load_pem_x509_certificate(first[0])
    constraints = made.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    assert serialization.load_pem_private_key(first[1], None).public_key() == made.public_key()


def test_half_of_it_is_none(tmp_path: Path) -> None:
    """Whoever was killed between the two makes both anew: a key without its certificate is no use to anybody."""
    certificate, key = tmp_path / "ca.pem", tmp_path / "ca.key"
    authority_make(certificate=certificate, key=key)
    certificate.unlink()
    authority_make(certificate=certificate, key=key)
    made = x509.load_pem_x509_certificate(certificate.read_bytes())
    assert serialization.load_pem_private_key(key.read_bytes(), None).public_key() == made.public_key()
