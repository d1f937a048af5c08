"""A gateway on loopback in the test's own loop, and servers that stand for those of a sandbox."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.installation import free_ports
from vm.host.authority import authority_make, certificate_issue
from vm.host.provision import ssh_host_key_make


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate, key, authority and host key, as an installation has them."""
    folder = tmp_path_factory.mktemp("identity")
    owner = (os.getuid(), os.getgid())
    authority_make(certificate=folder / "ca.pem", key=folder / "ca.key")
    certificate_issue(
        authority=folder / "ca.pem",
        authority_key=folder / "ca.key",
        names=["127.0.0.1", "localhost"],
        certificate=folder / "gateway.pem",
        key=folder / "gateway.key",
        owner=owner,
    )
    ssh_host_key_make(folder / "host_key", owner)
    return folder


@pytest.fixture
async def gate(identity: Path, quiet_database: None) -> AsyncIterator[Any]:
    """A running gateway: what it listens on, and `tls` of a client that trusts it."""
    from ide.gateway.server import GatewayConfig, gateway

    first, last = map(int, free_ports(4).split("-"))
    config = GatewayConfig(
        bind="127.0.0.1",
        certificate=identity / "gateway.pem",
        key=identity / "gateway.key",
        ports=range(first, last + 1),
        ssh_ports=(0,),
        ssh_host_key=identity / "host_key",
    )
    async with gateway(config) as listening:
        yield SimpleNamespace(listening=listening, tls=ssl.create_default_context(cafile=identity / "ca.pem"))
