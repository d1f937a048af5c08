"""Volumes over REST: pages of them with who has each, and where each comes from."""

from __future__ import annotations

from tests import factories
from tests.factories import Team
from tests.ide.api.test_secrets import Rest
from tests.ide.pages.test_views import signed_in
from vm.fake import FakeNode


def test_who_has_which(home: Team, other: Team, node: FakeNode) -> None:
    """Running sandboxes and workspaces that take it again are named, with where; what is over is not."""
    from sandboxes.models import Volume, VolumeMount

    rest = Rest(signed_in(home))
    assert rest("post", "volumes", {"slug": "data", "capacity": "1GB"})[0] == 201
    assert rest("post", "volumes", {"slug": "system", "capacity": "10GB", "source": "builtin:debian-13"})[0] == 201
    data, system = Volume.objects.get(slug="data"), Volume.objects.get(slug="system")
    running = factories.row(home, state="running", kind="sandbox", root=system)
    stopped = factories.row(home, state="stopped", kind="workspace", name="Work")
    over = factories.row(home, state="stopped", kind="sandbox")
    for sandbox in (stopped, over):
        VolumeMount.objects.create(sandbox=sandbox, volume=data, path="/data")
    found = {one["slug"]: one["used_by"] for one in rest("get", "volumes")[1]["items"]}
    assert found["data"] == [
        {"id": stopped.public_id, "name": "Work", "state": "stopped", "path": "/data", "read_only": False}
    ]
    assert [(use["id"], use["path"], use["read_only"]) for use in found["system"]] == [(running.public_id, "/", False)]
    assert rest("get", "volumes/data")[1]["used_by"] == found["data"]
    assert Rest(signed_in(other))("get", "volumes")[1]["items"] == []


def test_pages(home: Team, node: FakeNode) -> None:
    """Newest first, by a part of the slug, page after page; a cursor or limit that is none is refused."""
    rest = Rest(signed_in(home))
    for slug in ("tide-1", "tide-2", "wind", "tide-3"):
        assert rest("post", "volumes", {"slug": slug, "capacity": "1GB"})[0] == 201
    first = rest("get", "volumes?search=tide&limit=2")[1]
    assert [one["slug"] for one in first["items"]] == ["tide-3", "tide-2"]
    second = rest("get", f"volumes?search=tide&limit=2&cursor={first['next']}")[1]
    assert ([one["slug"] for one in second["items"]], second["next"]) == (["tide-1"], None)
    for query in ("limit=0", "limit=101", "limit=x", "cursor=x", "state=gone"):
        assert rest("get", f"volumes?{query}")[0] == 400


def test_lineage(home: Team, other: Team, node: FakeNode) -> None:
    """What something was made from, however far back, and what came from it; deleted ones are still named."""
    rest = Rest(signed_in(home))
    rest("post", "volumes", {"slug": "first", "capacity": "1GB"})
    rest("post", "volumes/first/snapshot", {"slug": "monday"})
    rest("post", "volumes", {"slug": "second", "capacity": "1GB", "source": "monday"})
    rest("post", "volumes/second/snapshot", {"slug": "tuesday"})
    assert rest("delete", "volumes/first")[0] == 204

    def named(path: str) -> tuple[list[str], list[str]]:
        status, body = rest("get", f"{path}/lineage")
        assert status == 200
        return [one["slug"] for one in body["ancestors"]], [one["slug"] for one in body["children"]]

    assert named("snapshots/tuesday") == (["second", "monday", "first"], [])
    assert named("snapshots/monday") == (["first"], ["second"])
    assert named("volumes/second") == (["monday", "first"], ["tuesday"])
    assert rest("get", "snapshots/monday/lineage")[1]["ancestors"][0]["state"] == "deleted"
    assert Rest(signed_in(other))("get", "snapshots/monday/lineage")[0] == 404
    assert Rest(signed_in(home, "viewer"))("get", "snapshots/monday/lineage")[0] == 200
