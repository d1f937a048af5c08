"""Who may visit an exposed port, and what of cookies passes: by a gateway, to a server that tells what it heard."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from django.utils import timezone

from ide.gateway.access import TRIES
from sandboxes.database import in_thread
from sandboxes.models import Access, Exposure, Membership, Sandbox
from sandboxes.services import lifecycle
from sandboxes.services.exposures import exposure_create, exposure_link
from tests import factories
from tests.factories import Team
from tests.ide.pages.test_views import signed_in
from vm.fake import FakeNode


async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with what it was asked, and two cookies of which one is not its to set."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    said = json.dumps(head.splitlines()).encode()
    writer.write(
        b"HTTP/1.1 200 OK\r\nSet-Cookie: mine=1\r\nSet-Cookie: atoll_session=stolen\r\nContent-Length: %d\r\n\r\n%s"
        % (len(said), said)
    )
    await writer.drain()
    writer.close()


@pytest.fixture
async def served() -> AsyncIterator[int]:
    server = await asyncio.start_server(tell, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.fixture
async def sandbox(home: Team, node: FakeNode) -> Sandbox:
    return await lifecycle.sandbox_boot(sandbox=await in_thread(factories.sandbox, home))


async def exposed(home: Team, sandbox: Sandbox, port: int, access: str, **more: Any) -> tuple[Exposure, str]:
    made: tuple[Exposure, str] = await in_thread(
        exposure_create, sandbox=sandbox, actor=home.member, port=port, access=Access(access), **more
    )
    return made


def visitor(gate: Any, exposure: Exposure, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"https://{exposure.domain}", verify=gate.tls, timeout=20, **options)


async def until(client: httpx.AsyncClient, path: str, status: int) -> None:
    """Ask again and again; a request that is under way as the gateway ends the connection has no answer."""
    async with asyncio.timeout(15):
        while True:
            with suppress(httpx.RemoteProtocolError):
                if (await client.get(path)).status_code == status:
                    return
            await asyncio.sleep(0.2)


async def test_a_link(gate: Any, home: Team, sandbox: Sandbox, served: int) -> None:
    """Lets in whoever has it, until it expires; its token is no part of what the server hears."""
    made, token = await exposed(home, sandbox, served, "link", hours=1)
    async with visitor(gate, made) as client:
        assert (await client.get("/a")).status_code == 401
        assert (await client.get("/.atoll/enter?token=wrong")).status_code == 403
        link = exposure_link(exposure=made, token=token)
        entered = await client.get(link + "&next=/a%3Fb%3Dc")
        assert (entered.status_code, entered.headers["location"]) == (303, "/a?b=c")
        for trap in ("https://evil.example", "//evil.example", "/%5C/evil.example", "/\r\nX: y"):
            answer = await client.get("/.atoll/enter", params={"token": token, "next": trap})
            assert answer.headers["location"].startswith("/")
            assert not answer.headers["location"].startswith(("//", "/\\"))
            assert "evil" not in (urlsplit(answer.headers["location"]).hostname or "")
        heard = (await client.get("/a")).json()
        assert heard[0] == "GET /a HTTP/1.1"
        assert not [line for line in heard if "atoll_" in line or token in line]

        await in_thread(Exposure.objects.filter(pk=made.pk).update, expires_at=timezone.now() - timedelta(seconds=1))
        await until(client, "/a", 404)


async def test_a_password(gate: Any, home: Team, sandbox: Sandbox, served: int) -> None:
    """By what every client has for it; the server never hears it. The cookie does from then on."""
    made, _ = await exposed(home, sandbox, served, "password", password="correct horse")
    async with visitor(gate, made) as client:
        refused = await client.get("/")
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Basic ")
        assert (await client.get("/", auth=("", "wrong horse"))).status_code == 401
        entered = await client.get("/", auth=("anybody", "correct horse"))
        assert entered.status_code == 200
        assert not [line for line in entered.json() if line.lower().startswith("authorization")]
        again = await client.get("/", headers={"Authorization": "Bearer of-the-application"})
        assert "Authorization: Bearer of-the-application" in again.json()


async def test_passwords_are_not_guessed_for_long(gate: Any, home: Team, sandbox: Sandbox, served: int) -> None:
    """However many are tried at once; whoever is in already is not kept out, and nobody is after a minute."""
    made, _ = await exposed(home, sandbox, served, "password", password="correct horse")
    another, _ = await exposed(home, sandbox, served + 1, "password", password="correct horse")
    async with visitor(gate, made) as client, visitor(gate, made) as guest, visitor(gate, another) as elsewhere:
        right = await asyncio.gather(*(guest.get("/", auth=("", "correct horse")) for _ in range(TRIES + 5)))
        assert {answer.status_code for answer in right} == {200}
        answers = await asyncio.gather(*(client.get("/", auth=("", f"wrong {n}")) for n in range(TRIES + 5)))
        assert sorted(answer.status_code for answer in answers) == [401] * TRIES + [429] * 5
        late = await client.get("/", auth=("", "wrong"))
        assert late.status_code == 429
        assert 0 < int(late.headers["retry-after"]) <= 60
        assert (await guest.get("/")).status_code == 200
        assert (await elsewhere.get("/", auth=("", "wrong"))).status_code == 401


async def test_members(gate: Any, home: Team, other: Team, sandbox: Sandbox, served: int) -> None:
    """Whoever is signed in and a member comes in through our pages, and no longer than he is one."""
    made, _ = await exposed(home, sandbox, served, "organization")
    member = await in_thread(signed_in, home, "viewer")
    stranger = await in_thread(signed_in, other, "owner")
    async with visitor(gate, made) as client:
        assert (await client.get("/x")).status_code == 401
        sent = await client.get("/x?y=1", headers={"Accept": "text/html"})
        assert sent.status_code == 303
        place = urlsplit(sent.headers["location"])
        path = f"{place.path}?{place.query}"
        assert place.path == f"/exposed/{made.public_id}"
        assert (await in_thread(stranger.get, path)).status_code == 404
        ticket = (await in_thread(member.get, path)).headers["Location"]
        assert ticket.startswith(f"https://{made.domain}/.atoll/enter?ticket=")
        assert (await client.get("/.atoll/enter?ticket=wrong")).status_code == 403
        entered = await client.get(ticket)
        assert (entered.status_code, entered.headers["location"]) == (303, "/x?y=1")
        assert (await client.get("/x")).status_code == 200
        # From another place's page, which shares the host name and so the cookie
        assert (await client.post("/x", headers={"Origin": "https://127.0.0.1:1"})).status_code == 403
        assert (await client.post("/x", headers={"Origin": f"https://{made.domain}"})).status_code == 200

        second, _ = await exposed(home, sandbox, served, "organization")
        async with visitor(gate, second, cookies=client.cookies) as elsewhere:
            assert (await elsewhere.get("/x")).status_code == 401
            assert (await elsewhere.get(ticket.replace(made.domain, second.domain))).status_code == 403

        await in_thread(Membership.objects.filter(user__email="viewer@home.example").delete)
        await until(client, "/x", 401)


async def test_cookies_of_ours_stay_ours(gate: Any, home: Team, sandbox: Sandbox, served: int) -> None:
    """A guest hears none that is for our pages or other ports, and can set none."""
    made, _ = await exposed(home, sandbox, served, "public")
    async with visitor(gate, made) as client:
        answer = await client.get("/", headers={"Cookie": "a=1; atoll_session=secret; ATOLL_exp_x=y; b=2"})
        assert [line for line in answer.json() if line.startswith("Cookie")] == ["Cookie: a=1; b=2"]
        assert answer.headers.get_list("set-cookie") == ["mine=1"]
        alone = await client.get("/", headers={"Cookie": "atoll_csrf=secret"})
        assert not [line for line in alone.json() if line.startswith("Cookie")]
