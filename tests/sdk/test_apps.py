"""Apps and layers by the official Python SDK: kept and edited. Deploying says that it is not there yet."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from deno_sandbox import DenoDeploy
from deno_sandbox.errors import HTTPStatusError

from tests.sdk.conftest import Server

pytestmark = [pytest.mark.sdk, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]
APP = {"id", "slug", "labels", "layers", "env_vars", "config", "created_at", "updated_at"}
LAYER = {"id", "slug", "description", "layers", "env_vars", "app_count", "created_at", "updated_at"}


def name() -> str:
    return f"a-{secrets.token_hex(4)}"


@pytest.fixture
def sdk(fake_server: Server, monkeypatch: pytest.MonkeyPatch) -> DenoDeploy:
    """On the node in memory only: no machine has a part in this."""
    for key, value in fake_server.client_environment().items():
        monkeypatch.setenv(key, value)
    return DenoDeploy()


@pytest.fixture
def shop(sdk: DenoDeploy) -> Iterator[Any]:
    app = sdk.apps.create(slug=name(), labels={"team": "sea"})
    yield app
    sdk.apps.delete(app["id"])


def test_an_app(sdk: DenoDeploy) -> None:
    """Found by id and slug; changed; gone once deleted, its slug free. A slug is chosen where none is given."""
    slug = name()
    app: Any = sdk.apps.create(slug=slug)
    assert set(app) == APP
    assert str(uuid.UUID(app["id"])) == app["id"]
    assert (app["labels"], app["layers"], app["env_vars"], app["config"]) == ({}, [], [], {})
    assert sdk.apps.get(slug) == sdk.apps.get(app["id"]) == app
    changed: Any = sdk.apps.update(slug, slug=f"{slug}-2", labels={"a": "b"}, config={"framework": "fresh"})
    assert (changed["id"], changed["slug"], changed["labels"]) == (app["id"], f"{slug}-2", {"a": "b"})
    assert changed["config"] == {"framework": "fresh"}
    assert changed["created_at"] == app["created_at"]
    assert changed["updated_at"] > app["updated_at"]
    sdk.apps.delete(app["id"])
    assert sdk.apps.get(app["id"]) is None
    assert sdk.apps.get(f"{slug}-2") is None
    for wanted in (slug, None):
        sdk.apps.delete(sdk.apps.create(slug=wanted)["id"])


def test_variables(sdk: DenoDeploy, shop: Any, fake_server: Server) -> None:
    """Merged by id or key; a secret one comes back without its value, from every call and to everybody."""
    app: Any = sdk.apps.update(
        shop["id"],
        env_vars=[
            {"key": "PLAIN", "value": "shown"},
            {"key": "TOKEN", "value": "v4lue", "secret": True, "contexts": ["production"]},
        ],
    )
    plain, token = app["env_vars"]
    assert plain == {"id": plain["id"], "key": "PLAIN", "value": "shown", "secret": False, "contexts": "all"}
    assert token == {"id": token["id"], "key": "TOKEN", "secret": True, "contexts": ["production"]}
    app = sdk.apps.update(shop["id"], env_vars=[{"id": plain["id"], "delete": True}, {"key": "TOKEN", "value": "n3w"}])
    assert app["env_vars"] == [token]
    with fake_server.rest() as rest:
        for path in ("v2/apps", f"v2/apps/{shop['id']}", "v1/apps", f"v1/apps/{shop['id']}", "v1/audit"):
            answer = rest.get(f"/api/{path}")
            assert answer.status_code == 200
            assert "TOKEN" in answer.text
            assert "v4lue" not in answer.text
            assert "n3w" not in answer.text


def test_layers(sdk: DenoDeploy, shop: Any) -> None:
    """Shared by apps in an order; not removed while one uses it."""
    base: Any = sdk.layers.create(name(), description="what all have", env_vars=[{"key": "A", "value": "1"}])
    top: Any = sdk.layers.create(name(), layers=[base["slug"]])
    assert set(base) == LAYER
    assert top["layers"] == [{"id": base["id"], "slug": base["slug"]}]
    app: Any = sdk.apps.update(shop["id"], layers=[top["id"], base["slug"]])
    assert [one["slug"] for one in app["layers"]] == [top["slug"], base["slug"]]
    assert sdk.layers.get(base["id"])["app_count"] == 1  # type: ignore[index]
    assert sdk.layers.apps(base["slug"]).items == [{"id": app["id"], "slug": app["slug"], "layer_position": 1}]
    assert [one["id"] for one in sdk.apps.list(layer=base["slug"]).items] == [app["id"]]
    with pytest.raises(HTTPStatusError) as refused:
        sdk.layers.delete(base["id"])
    assert (refused.value.status_code, refused.value.code) == (409, "CONFLICT")
    changed: Any = sdk.layers.update(base["id"], slug=f"{base['slug']}-2", env_vars=[{"key": "A", "value": "2"}])
    assert changed["env_vars"][0]["value"] == "2"
    assert changed["updated_at"] > base["updated_at"]
    sdk.apps.update(shop["id"], layers=[])
    for one in (top, base):
        sdk.layers.delete(one["id"])
        assert sdk.layers.get(one["id"]) is None


def test_pages_and_filters(sdk: DenoDeploy) -> None:
    """Each once, newest first, also behind a cursor of one's own; labels narrow it, and a layer's search."""
    mark = secrets.token_hex(4)
    made: list[Any] = [sdk.apps.create(slug=f"{mark}-{number}", labels={"mark": mark}) for number in range(5)]
    layers: list[Any] = [sdk.layers.create(f"{mark}-{number}") for number in range(3)]
    page: Any = sdk.apps.list(limit=2, labels={"mark": mark})
    seen = [one["slug"] for one in page.items]
    first = page.next_cursor
    while page.has_more:
        page = page.get_next_page()
        seen += [one["slug"] for one in page.items]
    assert seen == [f"{mark}-{number}" for number in (4, 3, 2, 1, 0)]
    again: Any = sdk.apps.list(limit=2, labels={"mark": mark}, cursor=first)
    assert [one["slug"] for one in again.items + again.get_next_page().items] == seen[2:]
    assert len(sdk.layers.list(search=mark).items) == 3
    assert sdk.apps.list(labels={"mark": "none"}).items == []
    for one in made:
        sdk.apps.delete(one["id"])
    for one in layers:
        sdk.layers.delete(one["id"])


def test_refusals(sdk: DenoDeploy, shop: Any) -> None:
    """The status and code that the SDK raises with."""
    calls: list[tuple[Callable[[], Any], int, str]] = [
        (lambda: sdk.apps.create(slug=shop["slug"]), 409, "SLUG_ALREADY_IN_USE"),
        (lambda: sdk.apps.create(slug="Not A Slug"), 400, "BAD_REQUEST"),
        (lambda: sdk.apps.create(labels={str(number): "" for number in range(6)}), 400, "BAD_REQUEST"),
        (lambda: sdk.apps.update("no-such-app", labels={}), 404, "NOT_FOUND"),
        (lambda: sdk.apps.delete("no-such-app"), 404, "NOT_FOUND"),
        (lambda: sdk.apps.create(layers=["no-such-layer"]), 404, "NOT_FOUND"),
        (lambda: sdk.apps.list(limit=1000), 400, "BAD_REQUEST"),
        (lambda: sdk.layers.create("x" * 41), 400, "BAD_REQUEST"),
        (lambda: sdk.revisions.cancel("no-such-revision"), 404, "NOT_FOUND"),
        (lambda: sdk.revisions.delete("no-such-revision"), 404, "NOT_FOUND"),
        (lambda: sdk.timelines.list("no-such-app"), 404, "NOT_FOUND"),
    ]
    for call, status, code in calls:
        with pytest.raises(HTTPStatusError) as refused:
            call()
        assert (refused.value.status_code, refused.value.code) == (status, code)


def test_nothing_is_deployed_yet(sdk: DenoDeploy, shop: Any) -> None:
    """An app has neither revisions nor timelines, and what would make or read them says why."""
    assert sdk.revisions.list(shop["id"], status="succeeded").items == []
    assert sdk.timelines.list(shop["slug"]).items == []
    assert sdk.revisions.get("no-such-revision") is None
    for call in (
        lambda: sdk.apps.logs(shop["slug"], start="2026-01-01T00:00:00Z"),
        lambda: list(sdk.apps.logs_stream(shop["slug"], start="2026-01-01T00:00:00Z")),
    ):
        with pytest.raises(HTTPStatusError) as refused:
            call()
        assert (refused.value.status_code, refused.value.code) == (501, "NOT_AVAILABLE")
        assert "does not deploy apps yet" in str(refused.value)


def test_a_deploy(fake_server: Server, shop: Any) -> None:
    """501 with a sentence; 404 for an app or a sandbox that is not there; 401 for strangers."""
    with fake_server.rest() as rest:
        answer = rest.post(f"/api/v2/apps/{shop['slug']}/deploy", json={"assets": {}})
        assert (answer.status_code, answer.json()["code"]) == (501, "NOT_AVAILABLE")
        for path in ("sandboxes/sbx_loc_00000000000000000000/deploy", "apps/no-such-app/deploy"):
            assert rest.post(f"/api/v2/{path}", json={"app": "shop"}).status_code == 404
            assert rest.post(f"/api/v2/{path}", headers={"Authorization": "Bearer x"}).status_code == 401
        assert rest.get("/api/v2/appstore").status_code == 404


def test_organizations_and_roles(fake_server: Server, shop: Any) -> None:
    """Nothing of it is seen from another organization, and a token that may read cannot change it."""
    with fake_server.rest("other") as rest:
        assert rest.get(f"/api/v2/apps/{shop['id']}").status_code == 404
        assert shop["id"] not in rest.get("/api/v2/apps").text
        assert rest.delete(f"/api/v1/apps/{shop['id']}").status_code == 404
    with fake_server.rest("home_viewer") as rest:
        assert rest.get(f"/api/v2/apps/{shop['id']}").status_code == 200
        assert rest.patch(f"/api/v2/apps/{shop['id']}", json={"labels": {}}).status_code == 403
        assert rest.delete(f"/api/v1/apps/{shop['id']}").status_code == 403


def test_under_api_v1(fake_server: Server) -> None:
    """The same objects, with pages in the body; the same rules."""
    with fake_server.rest() as rest:
        made = rest.post("/api/v1/layers", json={"slug": name(), "env_vars": [{"key": "A", "value": "1"}]})
        layer = made.json()
        assert (made.status_code, set(layer)) == (201, LAYER)
        app = rest.post("/api/v1/apps", json={"slug": name(), "layers": [layer["id"]]}).json()
        assert set(app) == APP
        one = f"/api/v1/apps/{app['id']}"
        changed = rest.patch(one, json={"env_vars": [{"key": "S", "value": "x", "secret": True}]}).json()
        assert [set(variable) for variable in changed["env_vars"]] == [{"id", "key", "secret", "contexts"}]
        assert changed["layers"] == app["layers"]
        assert rest.get(f"/api/v1/layers/{layer['slug']}/apps").json() == {
            "items": [{"id": app["id"], "slug": app["slug"], "layer_position": 0}],
            "next": None,
        }
        assert rest.get("/api/v1/apps", params={"layer": layer["slug"]}).json()["items"] == [changed]
        for lists in ("revisions", "timelines"):
            assert rest.get(f"{one}/{lists}").json() == {"items": [], "next": None}
        assert rest.delete(f"/api/v1/layers/{layer['id']}").status_code == 409
        assert rest.delete(one).status_code == 204
        assert rest.delete(f"/api/v1/layers/{layer['id']}").status_code == 204
