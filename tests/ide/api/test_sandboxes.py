"""Sandboxes over REST: how long they are to live, and which are listed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from sandboxes.models import Kind, Organization, Sandbox, SandboxState
from sandboxes.selectors.sandboxes import SHOWN_FOR, sandbox_list
from sandboxes.services import tokens
from tests.factories import Team, row
from tests.ide.api.test_secrets import Rest
from tests.ide.pages.test_views import signed_in
from vm.fake import FakeNode


def test_without_a_deadline_where_the_organization_allows_it(home: Team, node: FakeNode) -> None:
    """`unlimited` is refused elsewhere, and is not what one gets who says nothing; no other word is a time."""
    rest = Rest(signed_in(home))
    wanted = {"kind": "sandbox", "lifetime_seconds": "unlimited"}
    status, refused = rest("post", "sandboxes", wanted)
    assert (status, refused["message"]) == (400, "this organization does not allow sandboxes without a deadline")
    assert rest("post", "sandboxes", {"kind": "sandbox"})[1]["stop_at"] is not None
    for wrong in ("session", "5m", 0):
        assert rest("post", "sandboxes", {**wanted, "lifetime_seconds": wrong})[0] == 400

    Organization.objects.filter(pk=home.organization.pk).update(max_lifetime=0)
    status, made = rest("post", "sandboxes", wanted)
    assert (status, made["stop_at"]) == (201, None)
    assert rest("post", "sandboxes", {"kind": "sandbox", "lifetime_seconds": 60})[1]["stop_at"] is not None


@pytest.fixture
def crowd(home: Team) -> dict[str, Sandbox]:
    """A running and a kept workspace, a sandbox that ran all day, and 201 short ones that came and went after them."""
    S, now = SandboxState, timezone.now()
    made = {
        "running": row(home, kind=Kind.WORKSPACE, state=S.RUNNING, labels={"of": "ada"}),
        "suspended": row(home, kind=Kind.WORKSPACE, state=S.SUSPENDED),
        "kept": row(home, kind=Kind.WORKSPACE, state=S.STOPPED, stopped_at=now - 3 * SHOWN_FOR),
        "long": row(home, state=S.STOPPED, stopped_at=now, machine_removed=True, labels={"of": "ada"}),
        "yesterday": row(home, state=S.STOPPED, stopped_at=now - SHOWN_FOR - timedelta(minutes=1)),
        "deleted": row(home, kind=Kind.WORKSPACE, state=S.DELETED, deleted_at=now),
    }
    for number in range(201):
        made[f"short {number}"] = row(
            home, state=S.STOPPED, stopped_at=now - timedelta(minutes=number + 1), machine_removed=True
        )
    return made


def test_short_sandboxes_push_nothing_else_out_of_the_list(home: Team, crowd: dict[str, Sandbox]) -> None:
    """Pages and both SDKs list all that is there and the 200 that stopped last, newest first."""
    client = signed_in(home)
    stopped = [crowd[name] for name in ("long", *(f"short {number}" for number in range(199)))]
    expected = [crowd["running"], crowd["suspended"], crowd["kept"], *stopped]
    ids = [one.public_id for one in reversed(expected)]
    assert [one["id"] for one in Rest(client)("get", "sandboxes")[1]] == ids
    assert [one["id"] for one in Rest(client)("get", "sandboxes?state=active")[1]] == [crowd["running"].public_id]
    assert [one["id"] for one in Rest(client)("get", "sandboxes?kind=workspace")[1]] == ids[-3:]


@pytest.mark.parametrize(
    ("version", "filter_"), [(2, "labels%5Bof%5D=ada"), (3, "labels=%7B%27of%27%3A%20%27ada%27%7D")]
)
def test_the_sdks_list(home: Team, crowd: dict[str, Sandbox], version: int, filter_: str) -> None:
    secret = tokens.token_create(actor=home.member, name="sdk")[1]
    headers = {"authorization": f"Bearer {secret}"}
    listed = Client(headers=headers).get(f"/api/v{version}/sandboxes").json()
    assert len(listed) == 203
    assert [item["id"] for item in listed if item["status"] == "running"] == [
        crowd["suspended"].public_id,
        crowd["running"].public_id,
    ]
    listed = Client(headers=headers).get(f"/api/v{version}/sandboxes?{filter_}").json()
    assert [item["id"] for item in listed] == [crowd["long"].public_id, crowd["running"].public_id]


@pytest.mark.parametrize("labels", [None, {"of": "ada"}])
def test_a_list_costs_two_queries(
    home: Team,
    crowd: dict[str, Sandbox],
    labels: dict[str, str] | None,
    django_assert_num_queries: Callable[[int], AbstractContextManager[object]],
) -> None:
    """However many there are, and whatever they are filtered by."""
    with django_assert_num_queries(2):
        assert sandbox_list(actor=home.viewer, labels=labels)
