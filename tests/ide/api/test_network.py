"""What sandboxes may reach, and reached, over REST: of one's own organization only, and nothing without a reason."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.test import AsyncClient, Client

from sandboxes.models import Sandbox
from sandboxes.services import lifecycle, tokens
from sandboxes.services.egress_journal import egress_collect
from tests import factories
from tests.factories import Team
from tests.ide.pages.test_views import signed_in
from tests.vm.egress.test_spool import passage
from vm.egress.journal import Kind, Verdict, stray_placeholder
from vm.errors import NodeUnreachable
from vm.fake import FakeNode


@pytest.fixture
def sandbox(home: Team, node: FakeNode) -> Sandbox:
    made = factories.sandbox(home, allow_net=["good.example:443"])
    return async_to_sync(lifecycle.sandbox_boot)(sandbox=made)


def ask(who: Client, method: str, path: str, body: Any = None, status: int = 200) -> Any:
    call = getattr(who, method.lower())
    answer = (
        call(f"/api/v1/{path}", data=body, content_type="application/json")
        if body is not None
        else call(f"/api/v1/{path}")
    )
    assert answer.status_code == status, answer.content
    return answer.json()


def test_a_policy_is_looked_at_and_changed(home: Team, node: FakeNode, sandbox: Sandbox) -> None:
    """Its machine holds to it when the answer comes; whoever looked at an older one is told."""
    member, path = signed_in(home), f"sandboxes/{sandbox.public_id}/network"
    seen = ask(member, "GET", path)
    assert (seen["allow_net"], seen["deny_net"], seen["version"]) == (["good.example:443"], [], 0)
    changed = ask(member, "PUT", path, {"allow_net": None, "deny_net": ["bad.example"], "version": 0})
    assert (changed["allow_net"], changed["deny_net"], changed["version"], changed["applied"]) == (
        None,
        ["bad.example"],
        1,
        True,
    )
    assert list(node.policy(sandbox.machine).deny) == ["bad.example"]
    assert ask(member, "GET", f"sandboxes/{sandbox.public_id}")["network_version"] == 1
    refused = ask(member, "PUT", path, {"allow_net": [], "version": 0}, status=409)
    assert refused["code"] == "CONFLICT"
    wrong = ask(member, "PUT", path, {"allow_net": ["https://a.example"]}, status=400)
    assert "a URL" in wrong["message"]
    ask(member, "POST", f"{path}/allow", {"patterns": ["a.example"]}, status=409)
    ask(member, "PUT", path, {"allow_net": []})
    assert ask(member, "POST", f"{path}/allow", {"patterns": ["a.example:22"]})["allow_net"] == ["a.example:22"]
    denied = ask(member, "POST", f"{path}/deny", {"patterns": ["b.example:22"]})
    assert (denied["deny_net"], denied["ask_net"]) == (["b.example:22"], False)
    assert ask(member, "PUT", path, {"allow_net": [], "ask_net": True})["ask_net"] is True
    assert node.policy(sandbox.machine).ask
    node.go_down(NodeUnreachable("away"))
    assert ask(member, "PUT", path, {"allow_net": None})["applied"] is False
    node.go_down(None)


def test_what_was_denied_is_listed_with_what_would_help(home: Team, node: FakeNode, sandbox: Sandbox) -> None:
    node.passed(sandbox.machine, passage(1, began=time.time(), host="a.example"))
    async_to_sync(egress_collect)()
    member, path = signed_in(home), f"sandboxes/{sandbox.public_id}/network"
    (denial,) = ask(member, "GET", path)["denials"]
    assert (denial["pattern"], denial["remedy"]) == ("a.example:443", "allow")
    allowed = ask(member, "POST", f"{path}/allow", {"patterns": [denial["pattern"]]})
    assert [one["remedy"] for one in allowed["denials"]] == ["done"]


def test_connections_summary_proposal_and_export(home: Team, node: FakeNode, sandbox: Sandbox) -> None:
    node.passed(
        sandbox.machine,
        *(passage(n % 5, began=time.time(), verdict=Verdict.ALLOWED) for n in range(2500)),
        passage(9, began=time.time()),
    )
    async_to_sync(egress_collect)()
    viewer, path = signed_in(home, "viewer"), f"sandboxes/{sandbox.public_id}/network"
    newest = ask(viewer, "GET", f"{path}/connections?limit=2")
    assert [one["verdict"] for one in newest] == ["denied", "allowed"]
    assert ask(viewer, "GET", f"{path}/connections?host=h9&verdict=denied") == newest[:1]
    assert ask(viewer, "GET", f"{path}/connections?after={newest[0]['number']}") == []
    ask(viewer, "GET", f"{path}/connections?limit=501", status=400)
    ask(viewer, "GET", f"{path}/connections?verdict=odd", status=400)
    summary = ask(viewer, "GET", f"{path}/summary")
    assert (summary["total"]["connections"], summary["total"]["denied"], len(summary["series"])) == (2501, 1, 60)
    assert {host["host"] for host in summary["hosts"]} == {f"h{n}.example" for n in (0, 1, 2, 3, 4, 9)}
    assert ask(viewer, "GET", f"{path}/proposal")["patterns"] == [f"h{n}.example:443" for n in range(5)]
    assert ask(viewer, "GET", f"{path}/proposal?fold=true")["patterns"] == [f"h{n}.example:443" for n in range(5)]


def test_an_alert_is_told_and_counts_for_no_connection(home: Team, node: FakeNode, sandbox: Sandbox) -> None:
    """It says what happened; nothing was denied, so there is nothing to allow."""
    node.passed(sandbox.machine, stray_placeholder("a.example", 443, "API_KEY"))
    async_to_sync(egress_collect)()
    member, path = signed_in(home), f"sandboxes/{sandbox.public_id}/network"
    (alert,) = ask(member, "GET", path)["denials"]
    assert (alert["kind"], alert["host"], alert["remedy"]) == ("alert", "a.example", "")
    assert "API_KEY" in alert["detail"]
    assert [one["kind"] for one in ask(member, "GET", f"{path}/connections")] == ["alert"]
    assert ask(member, "GET", f"{path}/summary")["total"]["connections"] == 0
    assert ask(member, "GET", f"{path}/proposal")["patterns"] == []


async def test_an_export_is_streamed(home: Team, node: FakeNode) -> None:
    """Line by line, oldest first, in pieces that are read as they are sent."""
    from sandboxes.database import in_thread

    sandbox = await lifecycle.sandbox_boot(sandbox=await in_thread(factories.sandbox, home))
    node.passed(sandbox.machine, *(passage(n, began=time.time()) for n in range(2500)))
    await egress_collect()
    secret = (await in_thread(tokens.token_create, actor=home.member, name="t"))[1]
    path = f"/api/v1/sandboxes/{sandbox.public_id}/network/connections.jsonl"
    answer: Any = await AsyncClient().get(path, headers={"Authorization": f"Bearer {secret}"})
    assert answer.status_code == 200
    assert answer.streaming
    pieces = [piece async for piece in answer.streaming_content]
    assert len(pieces) == 3
    lines = [json.loads(line) for line in b"".join(pieces).splitlines()]
    assert [line["sent"] for line in lines] == list(range(2500))


async def test_requests_are_an_http_archive(home: Team, node: FakeNode) -> None:
    """Those that were intercepted, and nothing else; an archive of none is one."""
    from sandboxes.database import in_thread

    sandbox = await lifecycle.sandbox_boot(sandbox=await in_thread(factories.sandbox, home))
    secret = (await in_thread(tokens.token_create, actor=home.member, name="t"))[1]

    async def entries() -> list[dict[str, Any]]:
        path = f"/api/v1/sandboxes/{sandbox.public_id}/network/requests.har"
        answer: Any = await AsyncClient().get(path, headers={"Authorization": f"Bearer {secret}"})
        log = json.loads(b"".join([piece async for piece in answer.streaming_content]))["log"]
        assert (log["version"], log["creator"]["name"]) == ("1.2", "Atoll")
        return list(log["entries"])

    assert await entries() == []
    asked = {"kind": Kind.REQUEST, "verdict": Verdict.ALLOWED, "method": "POST", "path": "/v1/a?key", "status": 201}
    node.passed(sandbox.machine, passage(1), passage(2, **asked), passage(3, **{**asked, "port": 8443, "status": 0}))
    await egress_collect()
    first, second = await entries()
    assert (first["request"]["method"], first["request"]["url"]) == ("POST", "https://h2.example/v1/a?key")
    assert (first["response"]["status"], first["response"]["statusText"], first["time"]) == (201, "Created", 250)
    assert (second["request"]["url"], second["response"]["statusText"]) == ("https://h3.example:8443/v1/a?key", "")


def test_another_organization_s_is_not_found(home: Team, other: Team, node: FakeNode, sandbox: Sandbox) -> None:
    """For whoever is its owner; and one's own viewers may look but not change."""
    stranger, path = signed_in(other, "owner"), f"sandboxes/{sandbox.public_id}/network"
    asked: list[tuple[str, str, Any]] = [
        ("GET", "", None),
        ("PUT", "", {"allow_net": None}),
        ("POST", "/allow", {"patterns": []}),
        ("POST", "/deny", {"patterns": []}),
        ("GET", "/connections", None),
        ("GET", "/connections.jsonl", None),
        ("GET", "/requests.har", None),
        ("GET", "/summary", None),
        ("GET", "/proposal", None),
    ]
    for method, end, body in asked:
        assert ask(stranger, method, path + end, body, status=404)["code"] == "NOT_FOUND"
    viewer = signed_in(home, "viewer")
    assert ask(viewer, "GET", path)["version"] == 0
    ask(viewer, "PUT", path, {"allow_net": None}, status=403)
    ask(viewer, "POST", f"{path}/allow", {"patterns": ["a.example"]}, status=403)
    assert list(node.policy(sandbox.machine).allow_net or ()) == ["good.example:443"]


def test_an_organization_s_defaults(home: Team, other: Team, node: FakeNode, sandbox: Sandbox) -> None:
    """An administrator sets them; they hold for what runs as far as they deny, and are nobody else's."""
    admin = signed_in(home, "admin")
    assert ask(admin, "GET", "network/defaults") == {"allow_net": None, "deny_net": []}
    wanted = {"allow_net": ["a.example"], "deny_net": ["bad.example"]}
    assert ask(admin, "PUT", "network/defaults", wanted) == wanted
    assert list(node.policy(sandbox.machine).deny) == ["bad.example"]
    assert ask(signed_in(home), "GET", f"sandboxes/{sandbox.public_id}/network")["organization_deny"] == ["bad.example"]
    ask(signed_in(home), "PUT", "network/defaults", wanted, status=403)
    assert ask(signed_in(other, "owner"), "GET", "network/defaults") == {"allow_net": None, "deny_net": []}
    made = ask(signed_in(home), "POST", "sandboxes", {"name": "new"}, status=201)
    assert ask(signed_in(home), "GET", f"sandboxes/{made['id']}/network")["allow_net"] == ["a.example"]
    made = ask(signed_in(home), "POST", "sandboxes", {"allow_net": [], "deny_net": ["c.example"]}, status=201)
    assert ask(signed_in(home), "GET", f"sandboxes/{made['id']}/network")["allow_net"] == []


def test_templates_and_checks(home: Team, node: FakeNode) -> None:
    """Registries are those that the image names; a node that is away leaves them empty and says so."""
    node.registries = ("packages.example:443",)
    member = signed_in(home)
    lists = {one["id"]: one for one in ask(member, "GET", "network/templates")}
    assert lists["packages"]["patterns"] == ["packages.example:443"]
    patterns = [pattern for one in lists.values() for pattern in one["patterns"]]
    assert ask(member, "POST", "network/check", {"patterns": patterns}) == []
    node.go_down(NodeUnreachable("away"))
    empty = {one["id"]: one for one in ask(member, "GET", "network/templates")}["packages"]
    assert (empty["patterns"], "does not answer" in empty["note"]) == ([], True)
    node.go_down(None)
    (wrong,) = ask(member, "POST", "network/check", {"patterns": ["a.example", "a b"]})
    assert wrong["place"] == 1
