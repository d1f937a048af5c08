"""Secrets over REST: made, given other values, revoked; names come back, values never, and nobody else's are seen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from sandboxes.models import Sandbox, SandboxState, Secret
from sandboxes.services import lifecycle, tokens
from tests import factories
from tests.factories import Team
from tests.ide.pages.test_views import signed_in
from vm.fake import FakeNode

VALUE = "v4lue-that-never-comes-back"
BODY = {"name": "API_KEY", "value": VALUE, "hosts": ["api.example.com"]}


class Rest:
    """A person's client that speaks JSON and keeps all that was answered."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.answers: list[str] = []

    def __call__(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        content = {} if body is None else {"data": json.dumps(body), "content_type": "application/json"}
        answer = getattr(self._client, method)(f"/api/v1/{path}", **content)
        text = answer.content.decode()
        self.answers.append(text)
        return answer.status_code, json.loads(text) if text else None


@pytest.fixture
def member(home: Team, node: FakeNode) -> Iterator[Rest]:
    """A member; no answer that he gets holds a value."""
    rest = Rest(signed_in(home, "member"))
    yield rest
    assert not [text for text in rest.answers if VALUE in text]


def test_of_the_organization(member: Rest) -> None:
    status, made = member("post", "secrets", {**BODY, "places": ["query"], "labels": {"team": "sea"}})
    assert status == 201
    assert {name: made[name] for name in ("name", "sandbox", "hosts", "places", "labels", "version", "pending")} == {
        "name": "API_KEY",
        "sandbox": None,
        "hosts": ["api.example.com"],
        "places": ["query"],
        "labels": {"team": "sea"},
        "version": 1,
        "pending": 0,
    }
    assert (made["created_by"], made["rotated_at"], made["pushed_at"]) == ("member@home.example", None, None)
    assert "value" not in made
    assert member("get", "secrets") == (200, [made])
    status, rotated = member("post", f"secrets/{made['id']}/rotate", {"value": f"{VALUE}2"})
    assert (status, rotated["version"], rotated["hosts"], rotated["rotated_by"]) == (
        200,
        2,
        ["api.example.com"],
        "member@home.example",
    )
    assert member("delete", f"secrets/{made['id']}") == (204, None)
    assert member("get", "secrets") == (200, [])
    assert member("delete", f"secrets/{made['id']}")[0] == 404


async def test_a_sandbox_is_created_with_its_secrets(home: Team, node: FakeNode) -> None:
    """And with whether it asks: its machine has both from its first moment. One name twice is refused."""
    from asgiref.sync import sync_to_async

    rest = Rest(await sync_to_async(signed_in)(home, "member"))
    ask = sync_to_async(rest)
    wanted = {"allow_net": ["api.example.com"], "ask_net": True, "secrets": [{**BODY, "places": ["query"]}]}
    status, made = await ask("post", "sandboxes", wanted)
    assert status == 201
    sandbox = await Sandbox.objects.aget(public_id=made["id"])
    async with asyncio.timeout(10):
        while sandbox.state != SandboxState.RUNNING:
            await asyncio.sleep(0.02)
            await sandbox.arefresh_from_db()
    [told] = node.secrets(sandbox.machine)
    assert (told.value, list(told.places), node.policy(sandbox.machine).ask) == (VALUE, ["query"], True)
    for wrong in ([BODY, BODY], [{**BODY, "hosts": []}]):
        status, problem = await ask("post", "sandboxes", {"secrets": wrong})
        assert (status, "secret" in problem["message"]) == (400, True), problem
    assert await Sandbox.objects.acount() == 1
    assert not [text for text in rest.answers if VALUE in text]
    await lifecycle.sandbox_stop(sandbox=sandbox, actor=home.member, beside=False)


async def test_of_a_running_sandbox(home: Team, node: FakeNode) -> None:
    """When the answer is there its machine has been told."""
    from asgiref.sync import sync_to_async

    from tests.sandboxes.services.test_lifecycle import booted

    sandbox = await booted(home)
    rest = Rest(await sync_to_async(signed_in)(home, "member"))
    ask = sync_to_async(rest)
    status, made = await ask("post", f"sandboxes/{sandbox.public_id}/secrets", BODY)
    assert (status, made["sandbox"], made["pending"], made["overridden"]) == (201, sandbox.public_id, 0, False)
    [told] = node.secrets(sandbox.machine)
    assert (told.value, told.placeholder) == (VALUE, made["placeholder"])
    await ask("post", "secrets", {**BODY, "value": f"{VALUE}2"})
    status, both = await ask("get", f"sandboxes/{sandbox.public_id}/secrets")
    assert [(one["sandbox"], one["overridden"]) for one in both] == [(sandbox.public_id, False), (None, True)]
    await ask("post", f"secrets/{made['id']}/rotate", {"value": f"{VALUE}3"})
    assert [one.value for one in node.secrets(sandbox.machine)] == [f"{VALUE}3"]
    await ask("delete", f"secrets/{made['id']}")
    assert [one.value for one in node.secrets(sandbox.machine)] == [f"{VALUE}2"]
    assert not [text for text in rest.answers if VALUE in text]
    await lifecycle.sandbox_stop(sandbox=sandbox, actor=home.member, beside=False)


@pytest.mark.parametrize(
    ("change", "status", "code", "said"),
    [
        ({"hosts": []}, 400, "BAD_REQUEST", "at least one is needed"),
        ({"hosts": ["10.0.0.1"]}, 400, "BAD_REQUEST", "is an address"),
        ({"name": "A-B"}, 400, "BAD_REQUEST", "environment variable"),
        ({"value": f"{VALUE}\n"}, 400, "BAD_REQUEST", "line break"),
        ({"value": VALUE * 4000}, 400, "BAD_REQUEST", "bytes"),
        ({"value": {"v": VALUE}}, 400, "BAD_REQUEST", "value: "),
        ({"value": [VALUE]}, 400, "BAD_REQUEST", "value: "),
        ({"places": ["cookie"]}, 400, "BAD_REQUEST", "places"),
        ({"name": "TAKEN"}, 409, "CONFLICT", "already"),
    ],
)
def test_refusals(member: Rest, change: dict[str, Any], status: int, code: str, said: str) -> None:
    """Each with its code and what to do, and none repeats the value."""
    member("post", "secrets", {**BODY, "name": "TAKEN"})
    answered, problem = member("post", "secrets", {**BODY, **change})
    assert (answered, problem["code"]) == (status, code)
    assert said in problem["message"]
    assert Secret.objects.count() == 1


def test_a_body_that_is_no_json_is_not_repeated(home: Team) -> None:
    client = signed_in(home, "member")
    answer = client.post("/api/v1/secrets", data=f'{{"value": "{VALUE}"', content_type="application/json")
    assert answer.status_code == 400
    assert VALUE not in answer.content.decode()


def test_nobody_elses(member: Rest, home: Team, other: Team) -> None:
    """Another organization's are not found; a viewer of one's own is refused."""
    sandbox = factories.sandbox(home)
    _status, shared = member("post", "secrets", BODY)
    _status, own = member("post", f"sandboxes/{sandbox.public_id}/secrets", BODY)
    stranger, viewer = Rest(signed_in(other, "owner")), Rest(signed_in(home, "viewer"))
    for ask, status in ((stranger, 404), (viewer, 403)):
        for row in (shared, own):
            assert ask("post", f"secrets/{row['id']}/rotate", {"value": "x"})[0] == status
            assert ask("delete", f"secrets/{row['id']}")[0] == status
        assert ask("get", f"sandboxes/{sandbox.public_id}/secrets")[0] == status
        assert ask("post", f"sandboxes/{sandbox.public_id}/secrets", {**BODY, "name": "MORE"})[0] == status
    assert stranger("get", "secrets") == (200, [])
    assert viewer("get", "secrets")[0] == 403
    assert Secret.objects.count() == 2


def test_without_the_key_it_says_what_to_do(member: Rest, settings: Any, tmp_path: Path) -> None:
    settings.ATOLL = {**settings.ATOLL, "secrets_key": tmp_path / "gone"}
    status, problem = member("post", "secrets", BODY)
    assert (status, problem["code"]) == (503, "SECRETS_LOCKED")
    assert "put it back from a backup" in problem["message"]
    assert str(tmp_path) not in problem["message"]


def test_a_failure_of_ours_logs_no_value(
    home: Team, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, settings: Any
) -> None:
    """Neither the log's lines nor the page that DEBUG would show has it, or the request's body."""
    from django.test import RequestFactory
    from django.views.debug import ExceptionReporter

    from sandboxes.services import secrets

    def breaks(*args: Any, **more: Any) -> None:
        raise RuntimeError("the database is gone")

    monkeypatch.setattr(secrets, "_insert", breaks)
    client = signed_in(home, "member")
    client.raise_request_exception = False
    answer = client.post("/api/v1/secrets", data=json.dumps(BODY), content_type="application/json")
    assert answer.status_code == 500
    assert VALUE not in answer.content.decode()
    assert "the database is gone" in caplog.text
    assert VALUE not in caplog.text
    kept = [record.exc_info for record in caplog.records if record.exc_info]
    assert kept
    request = RequestFactory().post("/api/v1/secrets", data=json.dumps(BODY), content_type="application/json")
    for kind, error, trace in kept:
        assert VALUE not in ExceptionReporter(request, kind, error, trace).get_traceback_html()


def test_a_token_with_read_sees_names_only(home: Team, node: FakeNode) -> None:
    _token, reader = tokens.token_create(actor=home.member, name="r", scopes=("read",))
    _token, worker = tokens.token_create(actor=home.member, name="w", scopes=("sandboxes",))
    sandbox = factories.sandbox(home)
    client = Client()

    def ask(token: str, path: str) -> int:
        return client.post(
            f"/api/v1/{path}",
            data=json.dumps(BODY),
            content_type="application/json",
            headers={"authorization": f"Bearer {token}"},
        ).status_code

    own = f"sandboxes/{sandbox.public_id}/secrets"
    assert (ask(reader, own), ask(worker, "secrets"), ask(worker, own)) == (403, 403, 201)
    listed = client.get(f"/api/v1/{own}", headers={"authorization": f"Bearer {reader}"})
    assert [one["name"] for one in listed.json()] == ["API_KEY"]
