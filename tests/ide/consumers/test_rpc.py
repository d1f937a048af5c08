"""The sockets of pages and SDKs, as far as a suspended sandbox and its use are concerned."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from asgiref.testing import ApplicationCommunicator
from django.db import OperationalError
from django.utils import timezone

from ide.consumers import rpc
from ide.consumers.rpc import BrowserSocket, ConnectSocket, CreateSocket
from sandboxes.database import in_thread
from sandboxes.models import Sandbox, User, WebProcess
from sandboxes.services import lifecycle, mounts, suspension, tokens, volumes
from sandboxes.services.activity import activity
from sandboxes.services.presence import presence
from tests import factories
from tests.factories import Team

PATIENCE = 20


@pytest.fixture
async def running(node: Any, home: Team) -> Sandbox:
    sandbox = await in_thread(factories.sandbox, home, kind="workspace")
    return await lifecycle.sandbox_boot(sandbox=sandbox)


async def page(sandbox: Sandbox, home: Team) -> Any:
    """A page's socket, asked for by a member."""
    scope = {
        "type": "websocket",
        "headers": [],
        "user": await User.objects.aget(email=f"member@{home.organization.slug}.example"),
        "url_route": {"kwargs": {"sandbox": sandbox.public_id}},
    }
    made: Any = ApplicationCommunicator(BrowserSocket.as_asgi(), scope)  # type: ignore[no-untyped-call]
    await made.send_input({"type": "websocket.connect"})
    return made


async def creating(secret: str, **config: Any) -> Any:
    """A socket on which an SDK asks for a sandbox."""
    said = base64.b64encode(json.dumps(config).encode())
    headers = [(b"authorization", f"Bearer {secret}".encode()), (b"x-deno-sandbox-config", said)]
    scope = {"type": "websocket", "headers": headers}
    made: Any = ApplicationCommunicator(CreateSocket.as_asgi(), scope)  # type: ignore[no-untyped-call]
    await made.send_input({"type": "websocket.connect"})
    return made


async def ask(socket: Any, number: int, method: str, **params: Any) -> dict[str, Any]:
    request = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
    await socket.send_input({"type": "websocket.receive", "text": json.dumps(request)})
    while True:
        frame = await socket.receive_output(timeout=PATIENCE)
        if (answer := json.loads(frame["text"])).get("id") == number:
            found: dict[str, Any] = answer
            return found


async def leave(socket: Any) -> None:
    await socket.send_input({"type": "websocket.disconnect"})
    await socket.wait(timeout=PATIENCE)


async def test_a_pages_reconnecting_wakes_nothing(running: Sandbox, home: Team) -> None:
    """It is closed with the reason, refused with 409 while suspended, and let in once somebody asked for a resume."""
    socket = await page(running, home)
    assert (await socket.receive_output(timeout=PATIENCE))["type"] == "websocket.accept"
    assert (await ask(socket, 1, "readDir", path="/"))["result"]["ok"]
    await suspension.sandbox_suspend(sandbox=running, actor=home.member, beside=False)
    closed = await socket.receive_output(timeout=PATIENCE)
    assert (closed["type"], closed["code"]) == ("websocket.close", 1001)
    assert "suspended on request by member@home.example" in closed["reason"].lower()
    await leave(socket)

    socket = await page(running, home)
    assert (await socket.receive_output(timeout=PATIENCE))["status"] == 409
    body = json.loads((await socket.receive_output(timeout=PATIENCE))["body"])
    assert body["code"] == "SUSPENDED"
    await in_thread(running.refresh_from_db)
    assert running.state == "suspended"

    await suspension.sandbox_wake(sandbox=running, actor=home.member)
    socket = await page(running, home)
    assert (await socket.receive_output(timeout=PATIENCE))["type"] == "websocket.accept"
    assert (await ask(socket, 1, "readDir", path="/"))["result"]["ok"]
    await leave(socket)


async def test_a_page_that_is_merely_open_is_no_use(running: Sandbox, home: Team) -> None:
    """What a page asks by itself leaves the sandbox idle; what its person does counts."""
    socket = await page(running, home)
    await socket.receive_output(timeout=PATIENCE)
    await socket.send_input({"type": "websocket.receive", "text": "ping"})
    await socket.receive_output(timeout=PATIENCE)
    for number, method in enumerate(("usage", "terminal.list", "process.list")):
        await ask(socket, number, method)
    await ask(socket, 8, "readDir", path="/")
    await activity.flush()
    await in_thread(running.refresh_from_db)
    assert running.active_at is None
    assert "error" not in await ask(socket, 9, "writeTextFile", path="a", content="b")
    await activity.flush()
    await in_thread(running.refresh_from_db)
    assert running.active_at is not None
    await leave(socket)


async def test_connect_while_memory_is_saved(
    running: Sandbox, home: Team, node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handshake is answered in time however long that takes; the first call waits, and finds what was there."""
    monkeypatch.setattr("ide.consumers.rpc.READY_SECONDS", 0.2)
    saving, saved = asyncio.Event(), asyncio.Event()
    suspend = node.machine_suspend

    async def slow(machine: str) -> Any:
        saving.set()
        await saved.wait()
        return await suspend(machine)

    monkeypatch.setattr(node, "machine_suspend", slow)
    again = await in_thread(Sandbox.objects.get, pk=running.pk)
    await suspension.sandbox_suspend(sandbox=again, actor=home.member)
    await saving.wait()
    _row, secret = await in_thread(tokens.token_create, actor=home.member, name="sdk")
    scope = {
        "type": "websocket",
        "headers": [(b"authorization", f"Bearer {secret}".encode())],
        "url_route": {"kwargs": {"sandbox": running.public_id}},
    }
    socket: Any = ApplicationCommunicator(ConnectSocket.as_asgi(), scope)  # type: ignore[no-untyped-call]
    await socket.send_input({"type": "websocket.connect"})
    assert (await socket.receive_output(timeout=PATIENCE))["type"] == "websocket.accept"
    await in_thread(running.refresh_from_db)
    assert running.state == "suspending"
    saved.set()
    assert (await ask(socket, 1, "readDir", path="/"))["result"]["ok"]
    # Nor does the news of that suspend, which comes late, close it.
    await asyncio.sleep(0.6)
    assert (await ask(socket, 2, "readDir", path="/"))["result"]["ok"]
    await leave(socket)


async def test_create_that_waited_for_its_volume_is_answered_in_time(
    home: Team, node: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it waited for the volume is not waited for the guest again: a Python client gives up after 10 seconds."""
    assert mounts.PATIENCE < rpc.HANDSHAKE_SECONDS < 8
    monkeypatch.setattr(rpc, "HANDSHAKE_SECONDS", 1.5)
    monkeypatch.setattr(rpc, "READY_SECONDS", 2 * PATIENCE)
    mount = [mounts.WantedMount("data", str(tmp_path / "mnt"))]
    await volumes.volume_create(wanted=volumes.Wanted("data", "1GB"), actor=home.member)
    holder = await lifecycle.sandbox_boot(sandbox=await in_thread(factories.sandbox, home, volumes=mount))
    _row, secret = await in_thread(tokens.token_create, actor=home.member, name="sdk")
    node.boot_delay = 4 * PATIENCE
    socket = await creating(secret, stop_at_ms=int((time.time() + 60) * 1000), volumes={mount[0].path: "data"})
    assert await socket.receive_nothing(timeout=1)
    await lifecycle.sandbox_stop(sandbox=holder, actor=home.member, beside=False)
    assert (await socket.receive_output(timeout=PATIENCE))["type"] == "websocket.accept"
    made = await Sandbox.objects.aget(state__in=("queued", "starting"))
    await lifecycle.sandbox_stop(sandbox=made, actor=home.member, beside=False)
    await leave(socket)


async def test_session_ends_although_the_database_is_locked(
    home: Team, node: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process lives and holds it, so that nobody but the connection's own end would ever stop it."""
    monkeypatch.setattr("ide.consumers.rpc.END_AGAIN_SECONDS", 0.01)
    known, refusals = lifecycle.sandbox_stop, iter([True, True])

    async def stop(**asked: Any) -> Sandbox:
        if next(refusals, False):
            raise OperationalError("database is locked")
        return await known(**asked)

    holder = await in_thread(WebProcess.objects.create, seen_at=timezone.now())

    async def process() -> UUID:
        return holder.pk

    monkeypatch.setattr(presence, "process", process)
    monkeypatch.setattr(lifecycle, "sandbox_stop", stop)
    _row, secret = await in_thread(tokens.token_create, actor=home.member, name="sdk")
    socket = await creating(secret)
    assert (await socket.receive_output(timeout=PATIENCE))["type"] == "websocket.accept"
    await leave(socket)
    async with asyncio.timeout(PATIENCE):
        while (row := await Sandbox.objects.aget()).state != "stopped":
            await asyncio.sleep(0.05)
    assert row.stop_cause == "session_ended"


async def test_a_sixth_sandbox_is_refused_by_default(home: Team, node: Any) -> None:
    """An organization without a limit of its own runs five; the next is answered 429, and fits once one has ended."""
    first, *_rest = [await in_thread(factories.sandbox, home) for _ in range(5)]
    _row, secret = await in_thread(tokens.token_create, actor=home.member, name="sdk")
    socket = await creating(secret, stop_at_ms=int((time.time() + 60) * 1000))
    assert (await socket.receive_output(timeout=PATIENCE))["status"] == 429
    body = json.loads((await socket.receive_output(timeout=PATIENCE))["body"])
    assert body["code"] == "LIMIT_EXCEEDED"
    assert "5" in body["message"]
    assert await Sandbox.objects.acount() == 5
    await lifecycle.sandbox_stop(sandbox=first, actor=home.member, beside=False)
    socket = await creating(secret, stop_at_ms=int((time.time() + 60) * 1000))
    assert (await socket.receive_output(timeout=PATIENCE))["type"] == "websocket.accept"
    await leave(socket)
