"""What a sandbox may reach and reached, in a real browser: a denial is told, allowed with a click, and looked into."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Place, Workspace, create, until
from tests.browser.test_lifecycle import unique
from tests.vm.egress.test_spool import passage
from vm.egress.journal import Verdict, passage_to_json


def made_up(place: Place) -> bool:
    """Whether machines are in memory, whose connections a test makes up."""
    return not (place.data / "run" / "node.sock").exists()


def connects(place: Place, page: Page, *, host: str, port: int = 8443, **fields: Any) -> None:
    """The sandbox of the page was there."""
    sandbox = re.search(r"sbx_\w+", page.url)
    assert sandbox is not None
    made = passage(0, began=time.time(), host=host, port=port, **fields)
    line = json.dumps({"sandbox": sandbox[0], "passage": passage_to_json(made)})
    with (place.data / "passages.jsonl").open("a") as file:
        file.write(f"{line}\n")


def denied(place: Place, workspace: Workspace, host: str) -> None:
    """A program in the machine is denied that host."""
    if made_up(place):
        detail = f"{host}:8443 is not on this sandbox's list of allowed hosts."
        connects(place, workspace.page, host=host, detail=detail)
    else:
        workspace.type(f"curl -sm 5 https://{host}:8443/")


def network(page: Page) -> None:
    """Go from a workspace to its network page."""
    page.goto(f"{page.url.split('#')[0].removesuffix('/details')}/details")
    page.get_by_role("link", name="Network", exact=True).click()
    expect(page.get_by_role("heading", name="What it may reach")).to_be_visible()


def lines(page: Page, label: str, text: str) -> None:
    page.get_by_label(label, exact=True).fill(text)


def test_a_denial_is_told_and_allowed_with_one_click(place: Place, page: Page, complaints: list[str]) -> None:
    """In the workspace and on its network page; where the list is edited each line is checked as it is typed."""
    workspace = create(page, unique("Reef"))
    address = page.url
    network(page)
    expect(page.get_by_text("Programs in it reach every public host")).to_be_visible()
    page.get_by_role("radio", name="Only these").check()
    lines(page, "Allowed", "good.example:443\n\nhttps://bad.example")
    expect(page.get_by_text(re.compile("Line 3: .*not a URL", re.IGNORECASE))).to_be_visible()
    expect(page.get_by_role("button", name="Apply")).to_be_disabled()
    lines(page, "Allowed", "good.example:443")
    page.get_by_role("button", name="Apply").click()
    expect(page.get_by_text("Applied: it holds from now on")).to_be_visible()
    expect(page.get_by_role("button", name="Apply")).to_have_count(0)

    page.goto(address)
    workspace.wait_for_shell()
    denied(place, workspace, "first.example")
    notice = page.locator("[data-sonner-toast]").filter(has_text="first.example:8443 was denied")
    expect(notice).to_contain_text("not on this sandbox's list of allowed hosts")
    expect(notice.get_by_role("button", name="Why?")).to_be_visible()
    notice.get_by_role("button", name="Allow").click()
    expect(page.get_by_text("first.example:8443 is allowed")).to_be_visible()

    denied(place, workspace, "second.example")
    expect(page.get_by_text("second.example:8443 was denied")).to_be_visible()
    network(page)
    expect(page.get_by_label("Allowed", exact=True)).to_have_value("good.example:443\nfirst.example:8443")
    lately = page.get_by_role("region", name="Denied in the last minutes")
    expect(lately).to_contain_text("second.example:8443")
    expect(lately).not_to_contain_text("first.example")
    lately.get_by_role("button", name="Allow second.example:8443").click()
    expect(page.get_by_label("Allowed", exact=True)).to_have_value(re.compile("second.example:8443$"))
    expect(lately).to_have_count(0)

    connections = page.get_by_role("region", name="Connections")
    row = connections.get_by_role("button", name=re.compile("Denied second.example:8443"))
    expect(row).to_contain_text("Denied")
    row.first.click()
    expect(connections).to_contain_text("not on this sandbox's list of allowed hosts")
    connections.get_by_label("Host contains").fill("nowhere")
    expect(connections).to_contain_text("No connection is like that")
    assert complaints == []


def test_a_person_is_asked_and_answers(place: Place, page: Page, complaints: list[str]) -> None:
    """Where he works, with both answers, and each is a pattern from then on."""
    workspace = create(page, unique("Cay"))
    address = page.url
    network(page)
    page.get_by_role("radio", name="Only these").check()
    page.get_by_label("Ask about any other host").check()
    page.get_by_role("button", name="Apply").click()
    expect(page.get_by_text("Applied: it holds from now on")).to_be_visible()
    page.goto(address)
    workspace.wait_for_shell()
    for host, answer in (("first.example", "Allow"), ("second.example", "Deny")):
        if made_up(place):
            waits: dict[str, Any] = {
                "verdict": Verdict.ASKED,
                "rule": "ask",
                "seconds": 60.0,
                "detail": f"{host}:8443 waits",
            }
            connects(place, page, host=host, **waits)
        else:
            workspace.type(f"curl -sm 50 https://{host}:8443/ &")
        notice = page.locator("[data-sonner-toast]").filter(has_text=f"{host}:8443: allow it?")
        notice.get_by_role("button", name=answer).click()
        expect(page.get_by_text(re.compile(rf"{host}:8443 is (allowed|denied)")).first).to_be_visible()
    network(page)
    expect(page.get_by_label("Allowed", exact=True)).to_have_value("first.example:8443")
    expect(page.get_by_label("Denied, also where it is allowed above")).to_have_value("second.example:8443")
    expect(page.get_by_label("Ask about any other host")).to_be_checked()
    assert complaints == []


@pytest.fixture
def in_memory(place: Place) -> None:
    if not made_up(place):
        pytest.skip("the hosts that this test reaches are made up")


@pytest.mark.usefixtures("in_memory")
def test_the_list_is_written_from_what_was_reached(place: Place, page: Page, complaints: list[str]) -> None:
    """Empty at first; then a chart, hosts, a live list that waits for its reader, an export and a proposed list."""
    create(page, unique("Atoll"))
    network(page)
    expect(page.get_by_role("heading", name="No connections in the last hour")).to_be_visible()
    page.get_by_role("button", name="Write the list from what was reached").click()
    expect(page.get_by_text("Nothing was reached in the last 7 days")).to_be_visible()
    for number in range(4):
        connects(
            place, page, host=f"cdn{number}.assets.example", port=443, verdict=Verdict.ALLOWED, rule="all public hosts"
        )
    connections = page.get_by_role("region", name="Connections")
    expect(connections.get_by_role("button", name=re.compile("cdn3.assets.example"))).to_be_visible()
    chart = page.get_by_role("img", name=re.compile("^Connections: at most 4"))
    expect(chart.locator("canvas")).to_be_visible()
    page.get_by_role("region", name="Hosts").get_by_role("button", name=re.compile("cdn1.assets")).click()
    expect(connections.get_by_role("button", name=re.compile("assets.example"))).to_have_count(1)
    connections.get_by_label("Host contains").fill("")
    expect(connections.get_by_role("button", name=re.compile("assets.example"))).to_have_count(4)
    connections.get_by_role("button", name=re.compile("cdn0.assets")).hover()
    connects(place, page, host="late.example", port=443, verdict=Verdict.ALLOWED)
    expect(connections.get_by_text("Paused while you read: 1 new")).to_be_visible()
    expect(connections.get_by_role("button", name=re.compile("late.example"))).to_have_count(0)
    page.mouse.move(0, 0)
    expect(connections.get_by_role("button", name=re.compile("late.example"))).to_be_visible()
    with page.expect_download() as started:
        page.get_by_role("link", name="Export").click()
    exported = [json.loads(line) for line in started.value.path().read_text().splitlines()]
    assert [one["host"] for one in exported][-1] == "late.example"
    assert len(exported) == 5

    page.get_by_role("button", name="Write the list from what was reached").click()
    wanted = "\n".join([*(f"cdn{number}.assets.example:443" for number in range(4)), "late.example:443"])
    expect(page.get_by_label("Allowed", exact=True)).to_have_value(wanted)
    page.get_by_label("Many hosts of a domain").check()
    expect(page.get_by_label("Allowed", exact=True)).to_have_value("*.assets.example:443\nlate.example:443")
    page.get_by_text("Add a list").click()
    page.get_by_role("button", name="Add Git hosts").click()
    expect(page.get_by_label("Allowed", exact=True)).to_have_value(re.compile("late.example:443\n.*:22", re.DOTALL))
    page.get_by_role("button", name="Apply").click()
    expect(page.get_by_text("Applied: it holds from now on")).to_be_visible()
    assert complaints == []


def test_the_page_fits_a_narrow_screen_in_both_themes(page: Page, machine: str, complaints: list[str]) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        page.goto(f"{machine}/details#network")
        expect(page.get_by_role("heading", name="What it may reach")).to_be_visible()
        expect(page.get_by_role("heading", name="Connections", exact=True)).to_be_visible()
        until(lambda: page.evaluate("document.documentElement.scrollWidth") <= 360, "the page is wider than the screen")
    assert complaints == []
