"""Where a gateway listens, and that another one takes over what it served."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from sandboxes.database import in_thread
from sandboxes.errors import Unavailable
from sandboxes.models import Access, GatewayProcess
from sandboxes.services import lifecycle
from sandboxes.services.exposures import exposure_create, ssh_address
from tests import factories
from tests.factories import Team
from tests.installation import free_ports
from vm.fake import FakeNode


def config(identity: Path, **more: Any) -> Any:
    from ide.gateway.server import GatewayConfig

    given = {"bind": "127.0.0.1", "ssh_ports": (0,), "ssh_host_key": identity / "host_key", **more}
    return GatewayConfig(certificate=identity / "gateway.pem", key=identity / "gateway.key", **given)


async def test_ports_of_others_are_left_alone(identity: Path, quiet_database: None) -> None:
    """Of a range it takes what is free; for SSH the first that is; and says so in its row while it lives."""
    from ide.gateway.server import CannotListen, gateway

    first, last = map(int, free_ports(3).split("-"))
    with ExitStack() as others:
        others.enter_context(socket.create_server(("127.0.0.1", first + 1)))
        taken = others.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        ports = range(first, last + 1)
        async with gateway(config(identity, ports=ports, ssh_ports=(taken, 0))) as listening:
            assert listening.ports == (first, last)
            assert listening.ssh_port not in (None, taken)
            row = await in_thread(GatewayProcess.objects.get)
            assert (row.ports, row.ssh_port) == ([first, last], listening.ssh_port)
            assert await in_thread(ssh_address) == ("127.0.0.1", listening.ssh_port)
        assert not await in_thread(GatewayProcess.objects.exists)
        with pytest.raises(CannotListen, match="ATOLL_SSH_PORT"):
            async with gateway(config(identity, ssh_ports=(taken,))):
                pass
        with pytest.raises(CannotListen, match="ATOLL_EXPOSE_PORT"):
            async with gateway(config(identity, domain="box.example", domain_port=taken)):
                pass


async def test_another_one_goes_on(identity: Path, home: Team, node: FakeNode) -> None:
    """After a restart the same addresses lead where they did; without one nothing new is exposed."""
    from ide.gateway.server import gateway

    async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        await writer.drain()
        writer.close()

    sandbox = await lifecycle.sandbox_boot(sandbox=await in_thread(factories.sandbox, home))
    first, last = map(int, free_ports(3).split("-"))
    settings = config(identity, ports=range(first, last + 1))
    wanted: dict[str, Any] = {"sandbox": sandbox, "actor": home.member, "access": Access.PUBLIC}
    tls = ssl.create_default_context(cafile=identity / "ca.pem")
    async with await asyncio.start_server(hello, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with gateway(settings):
            made, _ = await in_thread(exposure_create, port=port, **wanted)
        with pytest.raises(Unavailable):
            await in_thread(exposure_create, port=port, **wanted)
        async with gateway(settings), httpx.AsyncClient(verify=tls, timeout=20) as client:
            assert (await client.get(f"https://{made.domain}/")).text == "hi"


async def test_a_visitor_of_http_1_0(identity: Path, home: Team, node: FakeNode) -> None:
    """Is answered as he understands: no chunks, and the end of the connection ends the answer."""
    from ide.gateway.server import gateway

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")[0]
        if first.endswith(b"HTTP/1.1") or b"/stubborn" in first:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
        else:
            writer.write(b"HTTP/1.0 200 OK\r\n\r\nhi")
        await writer.drain()
        writer.close()

    sandbox = await lifecycle.sandbox_boot(sandbox=await in_thread(factories.sandbox, home))
    first, last = map(int, free_ports(3).split("-"))
    tls = ssl.create_default_context(cafile=identity / "ca.pem")
    async with (
        await asyncio.start_server(answer, "127.0.0.1", 0) as server,
        gateway(config(identity, ports=range(first, last + 1))),
    ):
        port = server.sockets[0].getsockname()[1]
        made, _ = await in_thread(exposure_create, sandbox=sandbox, actor=home.member, port=port, access=Access.PUBLIC)
        host, _, outside = made.domain.rpartition(":")

        async def got(path: str, version: str) -> bytes:
            reader, writer = await asyncio.open_connection(host, int(outside), ssl=tls)
            writer.write(f"GET {path} HTTP/{version}\r\nHost: {made.domain}\r\nConnection: close\r\n\r\n".encode())
            try:
                return await reader.read()
            finally:
                writer.close()

        async with asyncio.timeout(20):
            assert (await got("/", "1.1")).endswith(b"\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
            old = await got("/", "1.0")
            assert old.endswith(b"\r\n\r\nhi")
            assert b"chunked" not in old
            assert (await got("/stubborn", "1.0")).startswith(b"HTTP/1.1 502 ")


async def test_names_below_a_domain(identity: Path, home: Team, node: FakeNode, settings: Any) -> None:
    """One port for all of them; a name that is nobody's, and one of another domain, are not found."""
    from ide.gateway.server import gateway

    async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        await writer.drain()
        writer.close()

    sandbox = await lifecycle.sandbox_boot(sandbox=await in_thread(factories.sandbox, home))
    port = int(free_ports(1).partition("-")[0])
    settings.ATOLL = {**settings.ATOLL, "expose_domain": "box.example"}
    tls = ssl.create_default_context(cafile=identity / "ca.pem")
    async with (
        await asyncio.start_server(hello, "127.0.0.1", 0) as server,
        gateway(config(identity, domain="box.example", domain_port=port)),
        httpx.AsyncClient(verify=tls, timeout=20, base_url=f"https://127.0.0.1:{port}") as client,
    ):
        inside = server.sockets[0].getsockname()[1]
        made, _ = await in_thread(
            exposure_create, sandbox=sandbox, actor=home.member, port=inside, access=Access.PUBLIC
        )
        assert made.domain == f"{made.name}.box.example:{port}"

        async def status(host: str) -> int:
            return (await client.get("/", headers={"Host": host})).status_code

        assert await status(made.domain) == 200
        assert await status(made.domain.upper()) == 200
        assert await status(f"{made.name[:-1]}x.box.example:{port}") == 404
        assert await status(f"{made.name}.other.example") == 404
        assert await status("box.example") == 404
