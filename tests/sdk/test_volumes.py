"""Volumes by the official Python SDK and over plain HTTP, against a running server."""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deno_sandbox import DenoDeploy
from deno_sandbox.errors import HTTPStatusError
from websockets import InvalidStatus

from tests.sdk.conftest import Server

pytestmark = [pytest.mark.sdk, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]
KEYS = {
    "id",
    "slug",
    "region",
    "capacity",
    "estimated_allocated_size",
    "estimated_flattened_size",
    "is_bootable",
    "base_snapshot",
}


def name() -> str:
    return f"v-{secrets.token_hex(4)}"


@pytest.fixture
def made(sdk: DenoDeploy) -> Iterator[list[str]]:
    """Volumes to remove after the test."""
    found: list[str] = []
    yield found
    for one in found:
        sdk.volumes.delete(one)


def test_a_volume(sdk: DenoDeploy) -> None:
    """Exactly the eight keys; found by id and slug; gone once deleted, its slug free."""
    slug = name()
    volume: Any = sdk.volumes.create(slug=slug, region="ord", capacity="1GB")
    assert set(volume) == KEYS
    assert (volume["slug"], volume["capacity"]) == (slug, 10**9)
    assert (volume["is_bootable"], volume["base_snapshot"]) == (False, None)
    assert sdk.volumes.get(slug) == sdk.volumes.get(volume["id"]) == volume
    sdk.volumes.delete(slug)
    assert sdk.volumes.get(slug) is None
    assert sdk.volumes.get(volume["id"]) is None
    second = sdk.volumes.create(slug=slug, region="ord", capacity=10**9)
    sdk.volumes.delete(second["id"])


def test_a_bootable_volume(sdk: DenoDeploy, made: list[str]) -> None:
    """Of the guest's own system."""
    volume = sdk.volumes.create(slug=name(), region="ord", capacity="10GB", from_snapshot="builtin:debian-13")
    made.append(volume["id"])
    assert (volume["is_bootable"], volume["base_snapshot"], volume["capacity"]) == (True, None, 10 * 10**9)


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"slug": "Not A Slug"}, 400, "BAD_REQUEST"),
        ({"capacity": "1MB"}, 400, "BAD_REQUEST"),
        ({"capacity": "lots"}, 400, "BAD_REQUEST"),
        ({"from_snapshot": "no-such-snapshot"}, 404, "NOT_FOUND"),
    ],
)
def test_refusals(sdk: DenoDeploy, changes: dict[str, Any], status: int, code: str) -> None:
    """The status and code that the SDK raises with."""
    wanted: dict[str, Any] = {"slug": name(), "region": "ord", "capacity": "1GB", **changes}
    with pytest.raises(HTTPStatusError) as refused:
        sdk.volumes.create(**wanted)
    assert (refused.value.status_code, refused.value.code) == (status, code)


def test_a_slug_that_is_taken(sdk: DenoDeploy, made: list[str]) -> None:
    """409, with the code that clients know."""
    slug = name()
    made.append(sdk.volumes.create(slug=slug, region="ord", capacity="300MB")["id"])
    with pytest.raises(HTTPStatusError) as refused:
        sdk.volumes.create(slug=slug, region="ord", capacity="300MB")
    assert (refused.value.status_code, refused.value.code) == (409, "SLUG_ALREADY_IN_USE")
    with pytest.raises(HTTPStatusError) as missing:
        sdk.volumes.delete("no-such-volume")
    assert missing.value.status_code == 404


def test_pages(sdk: DenoDeploy, made: list[str]) -> None:
    """Every volume once, newest first, over pages that the SDK walks by itself; a search narrows it."""
    common = secrets.token_hex(4)
    slugs = [f"{common}-{number}" for number in range(5)]
    for slug in slugs:
        made.append(sdk.volumes.create(slug=slug, region="ord", capacity="300MB")["id"])
    page: Any = sdk.volumes.list(limit=2, search=common)
    seen = [one["slug"] for one in page.items]
    while page.has_more:
        page = page.get_next_page()
        seen += [one["slug"] for one in page.items]
    assert seen == slugs[::-1]


@pytest.fixture
def place() -> Iterator[str]:
    """Where to mount something: on a node in memory that is a path of this host."""
    path = Path(f"/tmp/v-{secrets.token_hex(4)}")
    yield f"{path}/data"
    shutil.rmtree(path, ignore_errors=True)


def test_what_is_written_outlives_the_sandbox(sdk: DenoDeploy, made: list[str], place: str) -> None:
    """Mounted at create, stopped, and mounted by the next one a moment later: what was written is there."""
    slug = name()
    made.append(sdk.volumes.create(slug=slug, region="ord", capacity="300MB")["id"])
    with sdk.sandbox.create(volumes={place: slug}) as sandbox:
        sandbox.fs.write_text_file(f"{place}/kept", "as it was")
        assert sandbox.spawn("touch", args=[f"{place}/by-a-program"]).wait()["success"]
        with pytest.raises(HTTPStatusError) as busy:
            sdk.volumes.delete(slug)
        assert busy.value.status_code == 409
    with sdk.sandbox.create(volumes={place: made[0]}) as sandbox:
        assert sandbox.fs.read_text_file(f"{place}/kept") == "as it was"


def test_a_volume_has_one_sandbox_at_a_time(sdk: DenoDeploy, made: list[str], place: str) -> None:
    """A second create waits for five seconds and is refused with 409; unknown volumes are 404, bad paths 400."""
    slug = name()
    made.append(sdk.volumes.create(slug=slug, region="ord", capacity="300MB")["id"])
    with sdk.sandbox.create(volumes={place: slug}):
        began = time.monotonic()
        with pytest.raises(InvalidStatus) as busy, sdk.sandbox.create(volumes={place: slug}):
            pass
        assert 5 <= time.monotonic() - began < 9
        assert busy.value.response.status_code == 409
        assert slug in json.loads(busy.value.response.body or b"{}")["message"]
    for volumes, status in (({place: "no-such-volume"}, 404), ({"/": slug}, 400), ({"data": slug}, 400)):
        with pytest.raises(InvalidStatus) as refused, sdk.sandbox.create(volumes=volumes):
            pass
        assert refused.value.response.status_code == status


def test_a_volume_comes_while_the_sandbox_runs(server: Server, sdk: DenoDeploy, made: list[str], place: str) -> None:
    """Over REST, into a sandbox of the SDK; it goes again, and is free for others at once."""
    slug = name()
    made.append(sdk.volumes.create(slug=slug, region="ord", capacity="300MB")["id"])
    with server.rest() as rest, sdk.sandbox.create() as sandbox, sdk.sandbox.create() as second:
        path = f"/api/v1/sandboxes/{sandbox.id}/volumes"
        answer = rest.post(path, json={"volume": slug, "path": place})
        assert answer.status_code == 201, answer.text
        assert (answer.json()["path"], answer.json()["volume"]["slug"]) == (place, slug)
        sandbox.fs.write_text_file(f"{place}/live", "yes")
        assert [one["path"] for one in rest.get(path).json()] == [place]
        fork = rest.post(f"/api/v1/sandboxes/{sandbox.id}/fork", json={})
        assert fork.status_code == 201, fork.text
        assert f"{place} is a copy of that moment" in fork.json()["note"]
        assert rest.delete(f"/api/v1/sandboxes/{fork.json()['id']}").status_code == 204
        assert rest.delete(f"{path}/{slug}").status_code == 204
        assert rest.delete(f"{path}/{slug}").status_code == 404
        other = rest.post(f"/api/v1/sandboxes/{second.id}/volumes", json={"volume": slug, "path": f"{place}2"})
        assert other.status_code == 201, other.text
        assert second.fs.read_text_file(f"{place}2/live") == "yes"
        told = [one["text"] for one in rest.get(f"/api/v1/sandboxes/{sandbox.id}/timeline").json()]
        assert f"Volume {slug} was mounted at {place}" in told


def test_snapshots(sdk: DenoDeploy, made: list[str], place: str) -> None:
    """Taken of a volume that is in use, found, made into a volume, mounted read-only, and gone without harm."""
    slug, taken = name(), name()
    made.append(sdk.volumes.create(slug=slug, region="ord", capacity="300MB")["id"])
    with sdk.sandbox.create(volumes={place: slug}) as sandbox:
        sandbox.fs.write_text_file(f"{place}/kept", "one")
        snapshot: Any = sdk.volumes.snapshot(slug, slug=taken)
        sandbox.fs.write_text_file(f"{place}/kept", "two")
    assert snapshot["slug"] == taken
    assert (snapshot["volume"], snapshot["is_bootable"]) == ({"id": made[0], "slug": slug}, False)
    assert sdk.snapshots.get(taken) == sdk.snapshots.get(snapshot["id"])
    assert [one["slug"] for one in sdk.snapshots.list(search=taken).items] == [taken]
    child: Any = sdk.volumes.create(slug=name(), region="ord", capacity="300MB", from_snapshot=taken)
    made.append(child["id"])
    assert child["base_snapshot"] == {"id": snapshot["id"], "slug": taken}
    with sdk.sandbox.create(volumes={place: taken, f"{place}2": child["slug"], f"{place}3": slug}) as sandbox:
        assert sandbox.fs.read_text_file(f"{place}/kept") == "one"
        assert sandbox.fs.read_text_file(f"{place}2/kept") == "one"
        assert sandbox.fs.read_text_file(f"{place}3/kept") == "two"
    sdk.snapshots.delete(taken)
    assert sdk.snapshots.get(taken) is None
    with sdk.sandbox.create(volumes={place: child["slug"]}) as sandbox:
        assert sandbox.fs.read_text_file(f"{place}/kept") == "one"
    for change, status in (({"slug": slug}, 409), ({"slug": "NO"}, 400)):
        with pytest.raises(HTTPStatusError) as refused:
            sdk.volumes.snapshot(slug, **change)
        assert refused.value.status_code == status
    with pytest.raises(HTTPStatusError) as gone:
        sdk.volumes.snapshot("no-such-volume", slug=name())
    assert gone.value.status_code == 404


def test_root(sdk: DenoDeploy, made: list[str]) -> None:
    """A root volume persists from one sandbox to the next; a snapshot boots several, whose writes vanish."""
    slug, taken = name(), name()
    made.append(sdk.volumes.create(slug=slug, region="ord", capacity="10GB", from_snapshot="builtin:debian-13")["id"])
    with sdk.sandbox.create(root=slug, timeout="5m") as sandbox:
        sandbox.fs.write_text_file("kept", "one")
        sandbox.kill()
    with sdk.sandbox.create(root=made[0]) as sandbox:
        assert sandbox.fs.read_text_file("kept") == "one"
        snapshot: Any = sdk.volumes.snapshot(slug, slug=taken)
        assert snapshot["is_bootable"]
        sandbox.fs.write_text_file("kept", "two")
    for _ in range(2):
        with sdk.sandbox.create(root=taken) as sandbox:
            assert sandbox.fs.read_text_file("kept") == "one"
            sandbox.fs.write_text_file("kept", "three")
    with sdk.sandbox.create(root=taken) as first, sdk.sandbox.create(root=taken) as second:
        assert first.fs.read_text_file("kept") == second.fs.read_text_file("kept") == "one"
    sdk.snapshots.delete(taken)
    plain = name()
    made.append(sdk.volumes.create(slug=plain, region="ord", capacity="300MB")["id"])
    for root, status in ((plain, 400), ("no-such-volume", 404)):
        with pytest.raises(InvalidStatus) as refused, sdk.sandbox.create(root=root):
            pass
        assert refused.value.response.status_code == status


def test_a_snapshot_of_a_session(server: Server, sdk: DenoDeploy) -> None:
    """Of any sandbox that runs, over REST; the SDK finds it and boots from it, and what runs goes on."""
    taken = name()
    with server.rest() as rest, sdk.sandbox.create() as sandbox:
        sandbox.fs.write_text_file("kept", "one")
        answer = rest.post(f"/api/v1/sandboxes/{sandbox.id}/snapshot", json={"slug": taken})
        assert answer.status_code == 201, answer.text
        assert (answer.json()["bootable"], answer.json()["taken_of"]) == (True, sandbox.id)
        sandbox.fs.write_text_file("kept", "two")
        found: Any = sdk.snapshots.get(taken)
        assert (found["is_bootable"], found["base_snapshot"]) == (True, None)
        with sdk.sandbox.create(root=taken) as other:
            assert other.fs.read_text_file("kept") == "one"
        assert sandbox.fs.read_text_file("kept") == "two"
        assert rest.post("/api/v1/sandboxes/nobody/snapshot", json={"slug": name()}).status_code == 404
    sdk.snapshots.delete(taken)


def test_a_token_of_another_organization(fake_server: Server) -> None:
    """Nothing is seen across organizations, and one that may only read makes and deletes nothing."""
    slug = name()
    body = {"slug": slug, "region": "ord", "capacity": "300MB"}
    with fake_server.rest() as home, fake_server.rest("other") as other, fake_server.rest("home_viewer") as viewer:
        assert viewer.post("/api/v2/volumes", json=body).status_code == 403
        assert home.post("/api/v2/volumes", json=body).status_code == 201
        assert viewer.get(f"/api/v2/volumes/{slug}").status_code == 200
        assert viewer.delete(f"/api/v2/volumes/{slug}").status_code == 403
        assert other.get(f"/api/v2/volumes/{slug}").status_code == 404
        assert other.delete(f"/api/v2/volumes/{slug}").status_code == 404
        assert slug not in [one["slug"] for one in other.get("/api/v2/volumes").json()]
        assert home.delete(f"/api/v2/volumes/{slug}").status_code == 204


def test_undelete(fake_server: Server) -> None:
    """What was deleted is listed, can be brought back by its id, and is whole again."""
    slug = name()
    with fake_server.rest() as rest:
        made = rest.post("/api/v1/volumes", json={"slug": slug, "capacity": "300MB"}).json()
        assert rest.delete(f"/api/v1/volumes/{slug}").status_code == 204
        assert rest.get(f"/api/v1/volumes/{slug}").json()["code"] == "NOT_FOUND"
        deleted = rest.get("/api/v1/volumes", params={"state": "deleted", "search": slug}).json()["items"]
        assert [one["id"] for one in deleted] == [made["id"]]
        assert deleted[0]["restorable_until"]
        assert rest.post(f"/api/v1/volumes/{made['id']}/restore").json()["state"] == "ready"
        assert rest.get(f"/api/v1/volumes/{slug}").json()["id"] == made["id"]
        assert rest.delete(f"/api/v1/volumes/{slug}").status_code == 204
