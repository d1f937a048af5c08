"""Exposures over REST: made for some, seen by members, closed; and the ports that there are."""

from __future__ import annotations

import asyncio
import socket
import uuid
from typing import Any

import pytest

from sandboxes.models import Exposure
from sandboxes.services import lifecycle
from sandboxes.services.exposures import Listening, gateway_seen
from tests import factories
from tests.factories import Team
from tests.ide.api.test_secrets import Rest
from tests.ide.pages.test_views import signed_in
from vm.fake import FakeNode


@pytest.fixture
def gateway(quiet_database: None) -> None:
    gateway_seen(process=uuid.uuid4(), listening=Listening(ports=(8400, 8401), ssh_port=2222))


def test_made_seen_closed(home: Team, other: Team, gateway: None) -> None:
    """With a link that is told once; for whoever is no member of the organization there is nothing."""
    row = factories.row(home, state="running", kind="workspace")
    rest, stranger = Rest(signed_in(home)), Rest(signed_in(other, "owner"))
    path = f"sandboxes/{row.public_id}/exposures"
    status, made = rest("post", path, {"port": 3000, "access": "link", "hours": 2})
    assert status == 201
    token = made["link"].partition("token=")[2]
    assert made["link"].startswith(made["exposure"]["url"] + "/.atoll/enter?token=")
    assert made["exposure"]["access"] == "link"
    assert made["exposure"]["expires_at"] is not None
    listed = rest("get", path)[1]
    assert [one["id"] for one in listed] == [made["exposure"]["id"]]
    assert token not in str(listed)
    assert token not in str(list(Exposure.objects.values()))
    for call in (("get", path), ("post", path, {"port": 1}), ("delete", f"{path}/{made['exposure']['id']}")):
        assert stranger(*call)[0] == 404
    assert Rest(signed_in(home, "viewer"))("get", path)[0] == 403
    assert rest("delete", f"{path}/{made['exposure']['id']}")[0] == 204
    assert rest("delete", f"{path}/{made['exposure']['id']}")[0] == 404
    assert rest("get", path)[1] == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"port": 0}, 400),
        ({"port": 80, "access": "password", "password": "short"}, 400),
        ({"port": 80, "access": "link", "hours": 0}, 400),
        ({"port": 80, "access": "everybody"}, 400),
        ({"port": 80}, 201),
        ({"port": 80, "access": "public"}, 403),
    ],
)
def test_what_may_be_asked_for(home: Team, gateway: None, settings: Any, body: Any, status: int) -> None:
    """Where nothing may be public, the rest may."""
    settings.ATOLL = {**settings.ATOLL, "expose_public": False}
    row = factories.row(home, state="running")
    assert Rest(signed_in(home))("post", f"sandboxes/{row.public_id}/exposures", body)[0] == status


def test_where_keys_log_in(home: Team, gateway: None) -> None:
    """Host, port, and the sandbox's id as user name."""
    row = factories.row(home, state="running")
    status, told = Rest(signed_in(home))("get", f"sandboxes/{row.public_id}/ssh")
    assert (status, told) == (200, {"host": "127.0.0.1", "port": 2222, "user": row.public_id})


def test_ports(home: Team, node: FakeNode) -> None:
    """What is listened on in the machine, which is this host here."""
    row = factories.sandbox(home)
    rest = Rest(signed_in(home))
    assert rest("get", f"sandboxes/{row.public_id}/ports")[0] == 409
    asyncio.run(lifecycle.sandbox_boot(sandbox=row))
    with socket.create_server(("127.0.0.1", 0)) as server:
        status, found = rest("get", f"sandboxes/{row.public_id}/ports")
        assert status == 200
        assert {"port": server.getsockname()[1], "address": "127.0.0.1"}.items() <= next(
            one for one in found if one["port"] == server.getsockname()[1]
        ).items()
