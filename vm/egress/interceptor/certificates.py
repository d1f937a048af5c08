"""TLS on both sides of an interceptor: its own certificates for guests, and real ones that it insists on upstream."""

from __future__ import annotations

import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL, crypto

_LIFE = datetime.timedelta(days=2)
_BEFORE = datetime.timedelta(hours=1)  # a guest's clock may be behind
_RENEWED = datetime.timedelta(days=1)
_KEPT = 512
_MAX_NAME = 64  # characters of a common name
_ALPN = (b"h2", b"http/1.1")


class Minting:
    """Contexts for guests, each with a certificate for one name; one key of its own for all of them."""

    def __init__(self, certificate: bytes, key: bytes) -> None:
        """PEM of the installation's authority. ValueError if it is none."""
        self._authority = x509.load_pem_x509_certificate(certificate)
        authority_key = serialization.load_pem_private_key(key, None)
        if not isinstance(authority_key, ec.EllipticCurvePrivateKey):
            raise ValueError("the authority's key is not of an elliptic curve")
        self._authority_key = authority_key
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._contexts: dict[str, tuple[datetime.datetime, Any]] = {}

    def connection(self, name: str) -> Any:
        """One side of TLS that says it is `name`."""
        now = datetime.datetime.now(datetime.UTC)
        made = self._contexts.get(name)
        if made is None or now - made[0] > _RENEWED:
            if len(self._contexts) >= _KEPT:
                self._contexts.clear()
            made = self._contexts[name] = now, self._context(name, now)
        connection = SSL.Connection(made[1])
        connection.set_accept_state()
        return connection

    def _context(self, name: str, now: datetime.datetime) -> Any:
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_alpn_select_callback(_select)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)  # of connections that are idle
        context.use_certificate(crypto.X509.from_cryptography(self.certificate(name, now)))
        context.use_privatekey(crypto.PKey.from_cryptography_key(self._key))
        return context

    def certificate(self, name: str, now: datetime.datetime) -> x509.Certificate:
        """A certificate for one name, which is worth little when it is a few days old."""
        common = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if len(name) <= _MAX_NAME else []
        issuer_key = self._authority.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name(common))
            .issuer_name(self._authority.subject)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BEFORE)
            .not_valid_after(min(now + _LIFE, self._authority.not_valid_after_utc))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=not common)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key),  # type: ignore[arg-type]
                critical=False,
            )
            .sign(self._authority_key, hashes.SHA256())
        )


class Verifying:
    """One context for all upstreams: who cannot prove that he is who was dialled is not talked to."""

    def __init__(self, authorities: str) -> None:
        """`authorities` is a file of PEM. OSError, SSL.Error."""
        self._context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        self._context.set_min_proto_version(SSL.TLS1_2_VERSION)
        self._context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        self._context.set_verify(SSL.VERIFY_PEER, None)
        self._context.load_verify_locations(authorities)

    def connection(self, name: str, *, http2: bool) -> Any:
        """One side of TLS that talks to `name` only."""
        connection = SSL.Connection(self._context)
        connection.set_tlsext_host_name(name.encode("ascii"))
        _require(connection, name)
        connection.set_alpn_protos(list(_ALPN) if http2 else [b"http/1.1"])
        connection.set_connect_state()
        return connection


def _require(connection: Any, name: str) -> None:
    # pyOpenSSL has no name for it (as mitmproxy: addons/tlsconfig.py)
    library: Any = SSL._lib  # type: ignore[attr-defined]
    parameters = library.SSL_get0_param(connection._ssl)
    library.X509_VERIFY_PARAM_set_hostflags(
        parameters,
        library.X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | getattr(library, "X509_CHECK_FLAG_NEVER_CHECK_SUBJECT", 0),
    )
    host = name.encode("ascii")
    if library.X509_VERIFY_PARAM_set1_host(parameters, host, len(host)) != 1:
        raise ValueError(f"no certificate can be required for {name}")


def _select(connection: Any, offered: list[bytes]) -> Any:
    # In the client's order, as servers that have no wish of their own do
    return next((one for one in offered if one in _ALPN), SSL.NO_OVERLAPPING_PROTOCOLS)
