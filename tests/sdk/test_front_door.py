"""Handshakes, refusals, closes and plain HTTP calls, byte by byte where the SDKs would hide them."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import websockets
from websockets import ClientConnection, InvalidStatus, connect

from tests.sdk.conftest import Server

pytestmark = pytest.mark.sdk
JS: dict[str, Any] = {"memory_mb": 1280, "volumes": []}


def socket_url(server: Server, path: str) -> str:
    return server.url.replace("http", "ws", 1) + path


def config(**more: Any) -> str:
    return base64.b64encode(json.dumps({**JS, **more}).encode()).decode()


def create(server: Server, token: str = "home", header: str | None = None, **more: Any) -> Any:
    headers = {"Authorization": f"Bearer {server.tokens.get(token, token)}"}
    headers["x-deno-sandbox-config"] = config(**more) if header is None else header
    return connect(
        socket_url(server, "/api/v3/sandboxes/create"),
        additional_headers=headers,
        user_agent_header=None,
        open_timeout=20,
    )


def attach(server: Server, identifier: str, token: str = "home") -> Any:
    return connect(
        socket_url(server, f"/api/v3/sandbox/{identifier}/connect"),
        additional_headers={"Authorization": f"Bearer {server.tokens.get(token, token)}"},
        user_agent_header=None,
    )


async def refused(attempt: Any) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as raised:
        async with attempt:
            pass
    response = raised.value.response
    body = json.loads(response.body or b"{}")
    assert body["message"]
    return response.status_code, body["code"]


def identifier(peer: ClientConnection) -> str:
    assert peer.response is not None
    return peer.response.headers["x-deno-sandbox-id"]


async def call(peer: ClientConnection, number: int, method: str, **params: Any) -> Any:
    await peer.send(json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}))
    while (answer := json.loads(await peer.recv())).get("id") != number:
        pass
    return answer


def state(server: Server, sandbox: str) -> dict[str, Any]:
    with server.rest() as rest:
        row: dict[str, Any] = rest.get(f"/api/v1/sandboxes/{sandbox}").json()
        return row


async def until_stopped(server: Server, sandbox: str, seconds: float = 40) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while (row := await asyncio.to_thread(state, server, sandbox))["state"] != "stopped":
        assert time.monotonic() < deadline, row
        await asyncio.sleep(0.1)
    return row


async def test_handshake(fake_server: Server) -> None:
    """Id and trace in the answer, no subprotocol, ping answered by pong, and the first call works."""
    async with create(fake_server) as peer:
        assert re.fullmatch(r"sbx_[a-z]{3}_[0-9a-hjkmnp-z]{20}", identifier(peer))
        assert peer.response.headers["x-deno-trace-id"]
        assert peer.subprotocol is None
        await peer.send("ping")
        assert await peer.recv() == "pong"
        assert (await call(peer, 0, "envGet", key="x"))["result"] == {"ok": None}
        async with attach(fake_server, identifier(peer)) as second:
            assert identifier(second) == identifier(peer)


async def test_tokens(fake_server: Server) -> None:
    """No token, an unknown one, and one that may only read."""
    assert await refused(create(fake_server, token="ddo_unknown")) == (401, "INVALID_TOKEN")
    assert await refused(create(fake_server, token="")) == (401, "INVALID_TOKEN")
    assert await refused(create(fake_server, token="home_viewer")) == (403, "FORBIDDEN")


@pytest.mark.parametrize(
    "header", ["", "%%%", base64.b64encode(b"nonsense").decode(), base64.b64encode(b"[1]").decode()]
)
async def test_malformed_config(fake_server: Server, header: str) -> None:
    """400, and nothing is made."""
    assert await refused(create(fake_server, header=header)) == (400, "BAD_REQUEST")


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory_mb": 100},
        {"memory_mb": 100_000},
        {"memory_mb": "x"},
        {"timeout": "1w"},
        {"timeout": "unlimited"},
        {"stop_at_ms": 1000},
        {"labels": {str(n): "" for n in range(6)}},
        {"allow_net": ["https://a.example"]},
        {"allow_net": "a.example"},
        {"secrets": {"K": {"hosts": [], "value": "v"}}},
        {"secrets": {"K": {"hosts": ["10.0.0.1"], "value": "v"}}},
        {"secrets": {"K": {"hosts": ["a.example"], "value": ""}}},
        {"secrets": {"not a name": {"hosts": ["a.example"], "value": "v"}}},
    ],
)
async def test_config_out_of_bounds(fake_server: Server, wrong: dict[str, Any]) -> None:
    """Each is told before a machine is made."""
    assert await refused(create(fake_server, **wrong)) == (400, "BAD_REQUEST")


@pytest.mark.parametrize("unknown", [{"root": {"volume": "x"}}, {"volumes": {"/data": "x"}}])
async def test_config_of_unknown_volumes(fake_server: Server, unknown: dict[str, Any]) -> None:
    """A volume that nobody knows is not found, whether to boot from or to mount."""
    assert (await refused(create(fake_server, **unknown)))[0] == 404


async def test_large_config(fake_server: Server) -> None:
    """64 KiB of config are taken and reach the guest; over 100 KiB of header are refused with 431."""
    async with create(fake_server, env={"LARGE": "x" * 65_000}) as peer:
        assert len((await call(peer, 0, "envGet", key="LARGE"))["result"]["ok"]) == 65_000
    with pytest.raises(InvalidStatus) as raised:
        async with create(fake_server, env={"LARGE": "x" * 90_000}):
            pass
    assert raised.value.response.status_code == 431


async def test_quota(fake_server: Server) -> None:
    """The third of an organization with room for two is refused with 429; a place that becomes free can be taken."""
    async with create(fake_server, token="other") as first, create(fake_server, token="other"):
        assert await refused(create(fake_server, token="other")) == (429, "LIMIT_EXCEEDED")
        gone = identifier(first)
        await first.close()
        with fake_server.rest("other") as rest:
            deadline = time.monotonic() + 20
            while rest.get(f"/api/v1/sandboxes/{gone}").json()["state"] != "stopped":
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
        async with create(fake_server, token="other"):
            pass


async def test_other_organizations_do_not_exist(fake_server: Server) -> None:
    """Their sandboxes are not found, by socket and by every HTTP call; made-up ids neither."""
    async with create(fake_server) as peer:
        mine = identifier(peer)
        for unknown in (mine, "sbx_loc_00000000000000000000", "nonsense"):
            assert await refused(attach(fake_server, unknown, token="other")) == (404, "NOT_FOUND")
            with fake_server.rest("other") as rest:
                for method, path in (
                    ("GET", f"/api/v1/sandboxes/{unknown}"),
                    ("DELETE", f"/api/v1/sandboxes/{unknown}"),
                    ("POST", f"/api/v1/sandboxes/{unknown}/stop"),
                    ("POST", f"/api/v1/sandboxes/{unknown}/suspend"),
                    ("POST", f"/api/v1/sandboxes/{unknown}/resume"),
                    ("POST", f"/api/v1/sandboxes/{unknown}/restore"),
                    ("GET", f"/api/v1/sandboxes/{unknown}/timeline"),
                    ("GET", f"/api/v1/sandboxes/{unknown}/resources"),
                    ("GET", f"/api/v1/sandboxes/{unknown}/files/content?path=/etc/hostname"),
                    ("DELETE", f"/api/v3/sandbox/{unknown}"),
                    ("DELETE", f"/api/v3/sandboxes/{unknown}"),
                ):
                    assert rest.request(method, path).status_code == 404, path
                wanted = {"stop_at_ms": int(time.time() * 1000) + 60_000}
                assert rest.patch(f"/api/v3/sandbox/{unknown}", json=wanted).status_code == 404
                assert mine not in rest.get("/api/v1/sandboxes").text + rest.get("/api/v3/sandboxes").text
        assert state(fake_server, mine)["state"] == "running"


async def test_kill_closes_sockets_with_the_reason(fake_server: Server) -> None:
    """After DELETE a JavaScript socket is closed with 1001, and connecting again is not found."""
    async with create(fake_server, stop_at_ms=int(time.time() * 1000) + 600_000) as peer:
        made = identifier(peer)
        with fake_server.rest() as rest:
            assert rest.delete(f"/api/v3/sandbox/{made}").status_code == 204
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await asyncio.wait_for(peer.recv(), 10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
        assert "stopped on request" in closed.value.rcvd.reason
    assert await refused(attach(fake_server, made)) == (404, "NOT_FOUND")


async def test_suspend_closes_sockets_and_connecting_resumes(fake_server: Server) -> None:
    """A suspend closes with 1001 and the reason; the next connection resumes, and finds what was there."""
    async with create(fake_server, stop_at_ms=int(time.time() * 1000) + 600_000) as peer:
        made = identifier(peer)
        assert (await call(peer, 0, "writeTextFile", path="kept", content="yes"))["result"] == {"ok": None}
        with fake_server.rest() as rest:
            assert rest.post(f"/api/v1/sandboxes/{made}/suspend").status_code == 202
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await asyncio.wait_for(peer.recv(), 10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
        assert "suspended on request by owner@home.example" in closed.value.rcvd.reason.lower()
    assert state(fake_server, made)["state"] == "suspended"
    async with attach(fake_server, made) as again:
        assert (await call(again, 0, "readTextFile", path="kept"))["result"] == {"ok": "yes"}
    with fake_server.rest() as rest:
        assert rest.post(f"/api/v1/sandboxes/{made}/suspend").status_code == 202
        assert rest.delete(f"/api/v3/sandbox/{made}").status_code == 204
    assert (await until_stopped(fake_server, made))["stop_reason"] == "requested"


async def test_a_revoked_token_closes_its_sockets(fake_server: Server) -> None:
    """Whoever holds a socket by a token that was revoked meanwhile is shown out, and told why."""
    with fake_server.rest() as rest:
        made = rest.post("/api/v1/tokens", json={"name": "to be revoked", "kind": "organization"}).json()
        fake_server.tokens["revoked"] = made["secret"]
        async with create(fake_server, token="revoked") as peer:
            assert rest.delete(f"/api/v1/tokens/{made['token']['id']}").status_code == 204
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await asyncio.wait_for(peer.recv(), 30)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "credentials revoked")


async def test_connection_that_is_cut(fake_server: Server) -> None:
    """A session ends too when its connection is reset instead of closed."""
    peer = await create(fake_server)
    made = identifier(peer)
    peer.transport.abort()
    assert (await until_stopped(fake_server, made))["stop_reason"] == "session_ended"


async def test_half_open_connection_is_noticed(fake_server: Server) -> None:
    """A peer that answers no ping any more, without closing, ends its session within half a minute."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(fake_server.url.rsplit(":", 1)[1]))
    writer.write(
        f"GET /api/v3/sandboxes/create HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        f"Authorization: Bearer {fake_server.tokens['home']}\r\nx-deno-sandbox-config: {config()}\r\n\r\n".encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    found = re.search(rb"x-deno-sandbox-id: (\S+)", head, re.IGNORECASE)
    assert found is not None
    row = await until_stopped(fake_server, found[1].decode(), 45)
    assert row["stop_reason"] == "session_ended"
    writer.close()


async def test_garbage_closes_with_the_protocols_code(fake_server: Server) -> None:
    """4000 for what is not JSON."""
    async with create(fake_server) as peer:
        await peer.send("{")
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await peer.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4000


async def test_unknown_socket_paths(fake_server: Server) -> None:
    """404 instead of a dropped connection."""
    assert await refused(connect(socket_url(fake_server, "/api/v3/nothing"))) == (404, "NOT_FOUND")


async def test_pages_sockets_need_session_and_origin(fake_server: Server) -> None:
    """A token does not open them, another site's page neither, and a page of ours only when somebody is signed in."""
    path = "/ws/sandboxes/sbx_loc_00000000000000000000/rpc"
    for origin, status in (("http://evil.example", 403), ("http://127.0.0.1:1", 403), (fake_server.url, 401)):
        with pytest.raises(InvalidStatus) as raised:
            async with connect(
                socket_url(fake_server, path),
                origin=websockets.Origin(origin),
                additional_headers={"Authorization": f"Bearer {fake_server.tokens['home']}"},
            ):
                pass
        assert raised.value.response.status_code == status


@pytest.fixture
def rest(fake_server: Server) -> Iterator[httpx.Client]:
    with fake_server.rest() as client:
        yield client


def wait(rest: httpx.Client, sandbox: str, wanted: str) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while (row := rest.get(f"/api/v1/sandboxes/{sandbox}").json())["state"] != wanted:
        assert time.monotonic() < deadline, row
        time.sleep(0.05)
    return dict(row)


def test_workspace_over_rest(rest: httpx.Client) -> None:
    """Created, stopped, started again, downloaded from, deleted."""
    made = rest.post("/api/v1/sandboxes", json={"name": "demo", "labels": {"a": "b"}})
    assert made.status_code == 201
    row = made.json()
    assert (row["kind"], row["state"], row["name"]) == ("workspace", "queued", "demo")
    wait(rest, row["id"], "running")
    assert rest.patch(f"/api/v1/sandboxes/{row['id']}", json={"name": "other"}).json()["name"] == "other"
    missing = rest.get(f"/api/v1/sandboxes/{row['id']}/files/content", params={"path": "/no/such"})
    assert (missing.status_code, missing.json()["code"]) == (404, "NOT_FOUND")
    file = rest.get(f"/api/v1/sandboxes/{row['id']}/files/content", params={"path": "/etc/passwd"})
    assert file.text.startswith("root:")
    assert file.headers["content-disposition"] == 'attachment; filename="passwd"'
    archive = rest.get(f"/api/v1/sandboxes/{row['id']}/files/archive", params={"path": "/etc/apt"})
    assert archive.content[:2] == b"\x1f\x8b"
    assert rest.post(f"/api/v1/sandboxes/{row['id']}/stop").status_code == 202
    stopped = wait(rest, row["id"], "stopped")
    assert stopped["state_reason"] == "stopped on request by owner@home.example"
    gone = rest.get(f"/api/v1/sandboxes/{row['id']}/files/content", params={"path": "/etc/passwd"})
    assert (gone.status_code, gone.json()["code"]) == (409, "NOT_RUNNING")
    assert rest.post(f"/api/v1/sandboxes/{row['id']}/start").status_code == 202
    wait(rest, row["id"], "running")
    assert rest.delete(f"/api/v1/sandboxes/{row['id']}").status_code == 204
    assert rest.post(f"/api/v1/sandboxes/{row['id']}/start").status_code == 404
    deleted = rest.get(f"/api/v1/sandboxes/{row['id']}").json()
    assert (deleted["state"], deleted["next_step"]) == ("deleted", "restore")
    assert [row["id"] for row in rest.get("/api/v1/sandboxes", params={"state": "deleted"}).json()] == [row["id"]]
    assert rest.post(f"/api/v1/sandboxes/{row['id']}/restore").json()["next_step"] == "start"
    assert rest.post(f"/api/v1/sandboxes/{row['id']}/restore").status_code == 409
    assert rest.delete(f"/api/v1/sandboxes/{row['id']}").status_code == 204


def test_suspended_workspace_over_rest(rest: httpx.Client) -> None:
    """Suspend, resume, fork, extend, the timeline and what it uses; a download resumes it."""
    path = (
        "/api/v1/sandboxes/"
        + rest.post("/api/v1/sandboxes", json={"name": "rest", "lifetime_seconds": 60}).json()["id"]
    )
    made = path.rsplit("/", 1)[1]
    wait(rest, made, "running")
    resources = rest.get(f"{path}/resources").json()
    assert resources["memory_total"] > resources["memory_available"] > 0
    assert rest.post(f"{path}/suspend").status_code == 202
    paused = wait(rest, made, "suspended")
    assert paused["state_reason"] == "suspended on request by owner@home.example"
    assert (paused["next_step"], paused["stop_reason"]) == ("resume", "requested")
    assert [item["status"] for item in rest.get("/api/v3/sandboxes").json() if item["id"] == made] == ["running"]
    refused = rest.get(f"{path}/resources")
    assert (refused.status_code, refused.json()["code"]) == (409, "SUSPENDED")
    assert rest.post(f"{path}/fork", json={}).status_code == 409
    assert rest.post(f"{path}/start").status_code == 409
    assert rest.post(f"{path}/resume").status_code == 202
    wait(rest, made, "running")
    assert rest.post(f"{path}/resume").json()["state"] == "running"

    fork = rest.post(f"{path}/fork", json={"lifetime_seconds": 120}).json()
    assert (fork["name"], fork["forked_from"]) == ("rest (fork)", made)
    wait(rest, fork["id"], "running")
    before = rest.get(path).json()["stop_at"]
    assert rest.post(f"{path}/extend", json={"seconds": 600}).json()["stop_at"] > before
    assert rest.patch(path, json={"idle_minutes": 5}).json()["idle_minutes"] == 5
    assert rest.patch(path, json={"name": "other"}).json()["idle_minutes"] == 5
    assert rest.patch(path, json={"idle_minutes": None}).json()["idle_minutes"] is None

    rest.post(f"{path}/suspend")
    wait(rest, made, "suspended")
    assert rest.get(f"{path}/files/content", params={"path": "/etc/passwd"}).text.startswith("root:")
    timeline = rest.get(f"{path}/timeline").json()
    assert [entry["state"] for entry in timeline[-3:]] == ["suspended", "resuming", "running"]
    assert timeline[-2]["text"] == "Resumed by owner@home.example: something is downloaded from it"
    assert timeline[-1]["duration_seconds"] is None
    begins = [
        entry
        for entry, before in zip(timeline, [{"state": ""}, *timeline[:-1]], strict=True)
        if entry["state"] != before["state"]
    ]
    assert all(entry["duration_seconds"] >= 0 for entry in begins[:-1])
    for row in (made, fork["id"]):
        rest.delete(f"/api/v1/sandboxes/{row}")
    assert (
        rest.get(f"{path}/timeline").json()[-1]["text"].startswith("Deleted by owner@home.example; it can be restored")
    )


def test_people_and_tokens_over_rest(rest: httpx.Client, fake_server: Server) -> None:
    """Invite, change, remove; make a token, use it, revoke it."""
    me = rest.get("/api/v1/me").json()
    assert (me["organization"]["slug"], me["role"]) == ("home", "owner")
    assert me["quota"]["concurrent"] == 100
    invited = rest.post("/api/v1/members", json={"email": "new@home.example", "role": "viewer"})
    assert invited.status_code == 201
    assert "/login/" in invited.json()["sign_in_link"]
    member = invited.json()["member"]["id"]
    assert rest.patch(f"/api/v1/members/{member}", json={"role": "member"}).json()["role"] == "member"
    assert rest.delete(f"/api/v1/members/{member}").status_code == 204
    made = rest.post("/api/v1/tokens", json={"name": "t", "scopes": ["read"]}).json()
    bearer = {"Authorization": f"Bearer {made['secret']}"}
    assert httpx.get(f"{fake_server.url}/api/v1/me", headers=bearer).json()["may"].count("sandbox.create") == 0
    assert httpx.post(f"{fake_server.url}/api/v1/sandboxes", headers=bearer, json={}).status_code == 403
    assert rest.delete(f"/api/v1/tokens/{made['token']['id']}").status_code == 204
    assert httpx.get(f"{fake_server.url}/api/v1/me", headers=bearer).json()["code"] == "INVALID_TOKEN"
    assert any(entry["action"] == "token.revoke" for entry in rest.get("/api/v1/audit").json())


def test_rest_refusals(rest: httpx.Client, fake_server: Server) -> None:
    """Every error is a code and a message."""
    assert httpx.get(f"{fake_server.url}/api/v1/me").json()["code"] == "NOT_AUTHENTICATED"
    for wrong in ({"memory_mb": 10}, {"memory_mb": "x"}, {"kind": "x"}, {"name": "x" * 200}, {"lifetime_seconds": 0}):
        answer = rest.post("/api/v1/sandboxes", json=wrong)
        assert (answer.status_code, answer.json()["code"]) == (400, "BAD_REQUEST"), wrong
    assert rest.post("/api/v1/sandboxes", content=b"{").status_code == 400
    assert rest.get("/api/v3/sandboxes", params={"labels": "__import__('os')"}).status_code == 400
    assert rest.patch("/api/v3/sandbox/sbx_loc_x", content=b"").status_code == 404
    assert httpx.get(f"{fake_server.url}/healthz", headers={"Host": "evil.example"}).status_code == 400


def test_labels_in_three_encodings(rest: httpx.Client) -> None:
    """Brackets, JSON and Python's repr find the same."""
    made = rest.post("/api/v1/sandboxes", json={"labels": {"team": "blue"}}).json()["id"]
    for query in ({"labels[team]": "blue"}, {"labels": '{"team": "blue"}'}, {"labels": "{'team': 'blue'}"}):
        assert [item["id"] for item in rest.get("/api/v2/sandboxes", params=query).json()] == [made], query
    item = rest.get("/api/v3/sandboxes", params={"labels[team]": "blue"}).json()[0]
    assert set(item) == {"id", "createdAt", "stoppedAt", "region", "status", "labels"}
    rest.delete(f"/api/v1/sandboxes/{made}")


def test_session_cookie_needs_a_csrf_token(fake_server: Server) -> None:
    """A signed-in page reads with its cookie alone, and changes only with the token."""
    with httpx.Client(base_url=fake_server.url, follow_redirects=True) as page:
        landing = page.get(f"/login/{fake_server.tokens['home_link']}")
        token = page.cookies.get("atoll_csrf") or ""
        if "atoll_session" not in page.cookies:
            page.post(landing.url, data={"csrfmiddlewaretoken": token}, headers={"Referer": fake_server.url})
        assert page.get("/api/v1/me").json()["user"]["email"] == "owner@home.example"
        made = page.post("/api/v1/tokens", json={"name": "x"})
        assert (made.status_code, made.json()["code"]) == (403, "FORBIDDEN")
        token = page.cookies.get("atoll_csrf") or token
        made = page.post("/api/v1/tokens", json={"name": "x"}, headers={"X-CSRFToken": token})
        assert made.status_code == 201
