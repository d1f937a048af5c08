"""A gate whose guest is the test, real interceptor processes behind it, and TLS servers of ours for the internet."""

from __future__ import annotations

import asyncio
import datetime
import random
import secrets
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.vm.egress.world import LIST
from vm.api import EgressPolicy, Secret
from vm.egress.gate import Gate
from vm.egress.hooks import parse_hooks
from vm.egress.journal import Kind, Passage
from vm.egress.policy import Address, Policy
from vm.egress.refused import Refusals
from vm.egress.resolver import VirtualNames
from vm.egress.upstream import NotFound, Upstream
from vm.host.authority import authority_make
from vm.host.provision import Users, provision
from vm.node.config import NodeConfig
from vm.node.interceptors import Interceptors
from vm.storage.layout import Layout

API, OTHER = "api.example", "other.example"
VALUE = "s3cr3t/value+with=all?of ~ & 'it' ** so"


def placeholder() -> str:
    return f"DENO_SECRET_PLACEHOLDER_{secrets.token_hex(16)}"


def secret(hosts: Sequence[str] = (API,), *, value: str = VALUE, places: Sequence[str] = (), name: str = "T") -> Secret:
    return Secret(name, placeholder(), value, tuple(hosts), tuple(places))


class Authority:
    """A certificate authority of the test's own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.certificate, key = place / "upstream-ca.pem", place / "upstream-ca.key"
        authority_make(certificate=self.certificate, key=key)
        self._issuer = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        self._key = serialization.load_pem_private_key(key.read_bytes(), None)

    def context(self, *names: str, alpn: Sequence[str] = ("http/1.1",), days: int = 1) -> ssl.SSLContext:
        """What a server needs that is known by these names, for so many days from yesterday."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])]))
            .issuer_name(self._issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=3))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._issuer.public_key()),  # type: ignore[arg-type]
                critical=False,
            )
            .sign(self._key, hashes.SHA256())  # type: ignore[arg-type]
        )
        path = self.place / f"{secrets.token_hex(4)}.pem"
        path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        context.set_alpn_protocols(list(alpn))
        return context


@dataclass(slots=True)
class Got:
    """A request as a server saw it."""

    line: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes

    def __getitem__(self, name: str) -> bytes:
        return next((value for field, value in self.fields if field.lower() == name.encode()), b"")


type Reply = Callable[[Got, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def hello(got: Got, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The plainest of answers."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n")


def answering(head: str, *pieces: bytes, close: bool = False) -> Reply:
    """An answer with that head and its body in these pieces."""

    async def reply(got: Got, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {head}\r\n\r\n".encode("latin-1"))
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.03)
        if close:
            writer.close()

    return reply


async def endless(got: Got, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An answer that never ends, of which the interceptor has far more work than we have: it packs it anew."""
    packer = zlib.compressobj(wbits=31)
    piece = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(random.randbytes(40_000).hex().encode()) + packer.flush(zlib.Z_FULL_FLUSH)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not writer.is_closing():
        writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        await writer.drain()
        await asyncio.sleep(0)  # to hear that the other end is gone
        piece = again


async def read_request(reader: asyncio.StreamReader) -> Got:
    head = await reader.readuntil(b"\r\n\r\n")
    line, *rest = head[:-4].split(b"\r\n")
    fields = [(name, value.strip()) for name, _, value in (one.partition(b":") for one in rest)]
    got = Got(line, fields, b"")
    if got["content-length"]:
        got.body = await reader.readexactly(int(got["content-length"]))
    elif got["transfer-encoding"] == b"chunked":
        while size := int(await reader.readline(), 16):
            got.body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    return got


@dataclass(slots=True)
class Server:
    """A server of ours; `port` is where it is, and it remembers what it `got`."""

    port: int
    got: list[Got] = field(default_factory=list)
    dialled: int = 0
    open: int = 0

    async def left(self) -> None:
        """Until nobody is connected any more."""
        async with asyncio.timeout(10):
            while self.open:
                await asyncio.sleep(0.01)


class _Named(Upstream):
    def __init__(self, records: dict[str, str]) -> None:
        super().__init__()
        self._records = records

    async def resolve(self, name: str, places: asyncio.Semaphore) -> list[Address]:
        if name not in self._records:
            raise NotFound(f"{name} has no address")
        return [IPv4Address(self._records[name])]


class Scene:
    """What a test has: a gate, its interceptors, and servers."""

    def __init__(
        self,
        place: Path,
        *,
        interceptors: int = 1,
        hooks: Sequence[str] = (),
        hooks_path: Path | None = None,
        resting: float = 10.0,
        trusting: bool = True,
    ) -> None:
        self.authority = Authority(place)
        layout = Layout(place / "data")
        provision(data=layout.data, image_cache=place / "images", users=Users())
        self.ca = layout.authority
        self.config = NodeConfig(
            data=place / "data",
            image_cache=place,
            key_file=place,
            egress_ca_file=self.authority.certificate if trusting else None,
            interceptors=interceptors,
            interceptor_resting=resting,
            egress_hooks=tuple(hooks),
            egress_hooks_path=hooks_path,
        )
        self.interceptors = Interceptors(self.config, layout, lambda token, passage: self.passages.append(passage))
        self.passages: list[Passage] = []
        self.names = VirtualNames()
        self.records = {API: "127.0.0.1", OTHER: "127.0.0.1"}
        self.token = secrets.token_hex(32)
        self._wanted: list[tuple[IPv4Address, int]] = []
        self._upstream = _Named(self.records)

    async def start(self) -> None:
        self.interceptors.start()
        async with asyncio.timeout(60):
            while self.interceptors.alive < self.config.interceptors:
                await asyncio.sleep(0.05)
        self.open()

    def open(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self._address = listener.getsockname()
        self.gate = Gate(
            listener,
            policy=Policy(LIST),
            names=self.names,
            refusals=Refusals(["127.0.0.0/8"]),
            upstream=self._upstream,
            journal=lambda passage: self.passages.append(passage),
            limit=1024,
            token=self.token,
            interceptor=self.interceptors.port,
            hooks=parse_hooks(self.config.egress_hooks),
            original=lambda sock: self._wanted.pop(0),
        )
        self.gate.open()

    @contextmanager
    def beside(self, place: Path) -> Iterator[Scene]:
        """Another machine's gate before the same interceptors; what they say of it is heard here."""
        made = Scene(place)
        made.authority, made.ca, made.interceptors = self.authority, self.ca, self.interceptors
        made.open()
        try:
            yield made
        finally:
            made.gate.close()
            made._upstream.close()
            made.interceptors.forget(made.token)

    async def close(self) -> None:
        self.gate.close()
        self._upstream.close()
        await self.interceptors.close()

    async def tell(self, *told: Secret, allow: Sequence[str] = LIST, deny: Sequence[str] = ()) -> None:
        """Let this policy and these secrets hold, as a node does."""
        self.interceptors.know(self.token, EgressPolicy(allow, deny), told)
        self.gate.change(Policy(allow, deny), told)
        await self.interceptors.told()

    @asynccontextmanager
    async def serving(self, *replies: Reply, names: Sequence[str] = (API,), days: int = 1) -> AsyncIterator[Server]:
        """A server that gives these answers in turn, and the last of them from then on."""
        server = Server(0)
        writers: set[asyncio.StreamWriter] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            server.dialled += 1
            server.open += 1
            writers.add(writer)
            with suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
                while not writer.is_closing():
                    server.got.append(await read_request(reader))
                    reply = replies[min(len(server.got), len(replies)) - 1] if replies else hello
                    await reply(server.got[-1], reader, writer)
                    await writer.drain()
            server.open -= 1
            writers.discard(writer)
            writer.close()

        listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=self.authority.context(*names, days=days))
        server.port = listening.sockets[0].getsockname()[1]
        try:
            yield server
        finally:
            listening.close()
            # Closing waits for every connection, of which a guest may have left one open, or a reply may hang in one
            for writer in writers:
                writer.transport.abort()
            with suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await listening.wait_closed()

    async def connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection as a guest makes it, before anything was said."""
        self._wanted.append((self.names.address_of(host), port))
        return await asyncio.open_connection(*self._address, limit=2**20)

    def trusting(self, *alpn: str) -> ssl.SSLContext:
        """A client that trusts the installation, and the test's own authority beside it."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_verify_locations(str(self.authority.certificate))
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context

    @asynccontextmanager
    async def talking(
        self, host: str, port: int, *, sni: str = "", alpn: Sequence[str] = ("http/1.1",)
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A TLS connection of the guest's."""
        reader, writer = await self.connect(host, port)
        try:
            async with asyncio.timeout(20):
                await writer.start_tls(self.trusting(*alpn), server_hostname=sni or host)
                yield reader, writer
        finally:
            writer.close()
            # After a handshake that was cut off nobody tells asyncio's stream that it is closed
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(0.2):
                    await writer.wait_closed()

    async def ask(self, port: int, *lines: str, host: str = API, body: bytes = b"", path: str = "/") -> Answer:
        """One request and its answer, on a connection of its own."""
        async with self.talking(host, port) as (reader, writer):
            method = "POST" if body else "GET"
            length = [f"Content-Length: {len(body)}"] if body else []
            writer.write(request(f"{method} {path}", f"Host: {host}", *length, *lines) + body)
            return await read_answer(reader)

    def noted(self, kind: Kind = Kind.REQUEST) -> list[Passage]:
        return [passage for passage in self.passages if passage.kind is kind]

    async def note(self, kind: Kind = Kind.REQUEST) -> Passage:
        """The next record of that kind."""
        async with asyncio.timeout(5):
            while not (noted := self.noted(kind)):
                await asyncio.sleep(0.01)
        self.passages.remove(noted[0])
        return noted[0]


@dataclass(slots=True)
class Answer:
    """An answer as the guest saw it; `raw` is all of it."""

    status: int
    fields: dict[str, str]
    body: bytes
    raw: bytes


def request(line: str, *fields: str) -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", *fields, "", ""]).encode("latin-1")


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    head = await reader.readuntil(b"\r\n\r\n")
    line, *rest = head[:-4].decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in rest)}
    body, raw = b"", head
    if fields.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    elif "content-length" in fields:
        body = await reader.readexactly(int(fields["content-length"]))
    else:
        body = await reader.read(-1)
    return Answer(int(line.split()[1]), fields, body, raw + body)
