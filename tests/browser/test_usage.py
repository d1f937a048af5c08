"""Use, its cost and the cap on it, in a real browser: from nothing used to a cap that is reached."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import PATIENCE, Place, until


@pytest.fixture
def lab(place: Place, browser: Any) -> Iterator[Page]:
    """A browser of its own in an organization of its own: its cap stops nobody else's machine."""
    context = browser.new_context(base_url=place.url)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(place.login_link())
    page.get_by_role("button", name="Sign in to Atoll").click()
    page.goto("/organizations/new")
    page.get_by_label("Name", exact=True).fill("Meter Lab")
    page.get_by_role("button", name="Create organization").click()
    expect(page.get_by_text("No machines yet")).to_be_visible()
    yield page
    context.close()


def test_what_runs_is_counted_shown_and_capped(lab: Page) -> None:
    """Nothing, then a workspace with its cost, a chart that is read by keyboard, a table to download, and a cap."""
    page = lab
    page.get_by_role("link", name="Usage").click()
    expect(page.get_by_role("heading", name=re.compile("Nothing used in"))).to_be_visible()
    expect(page.get_by_text("No spending cap")).to_be_visible()
    expect(page.get_by_role("button", name="The month before")).to_be_disabled()

    page.goto("/")
    page.get_by_role("button", name="New workspace").first.click()
    page.get_by_label("Name", exact=True).fill("Metered")
    page.get_by_role("button", name="Create workspace").click()
    page.wait_for_url("**/sandboxes/sbx_*")
    row = page.get_by_role("row", name=re.compile("^Metered"))

    def counted() -> bool:
        page.goto("/usage")
        expect(page.get_by_test_id("total")).to_be_visible()
        return row.count() == 1

    until(counted, "nothing was counted")
    expect(row).to_contain_text("<$0.01")
    chart = page.get_by_role("img", name=re.compile("^Memory: at most"))
    expect(chart.locator("canvas")).to_be_visible()
    memory = page.locator("figure").filter(has=page.get_by_role("heading", name="Memory"))
    expect(memory.get_by_role("status")).to_have_text("GB-hours a day")
    chart.focus()
    page.keyboard.press("Home")
    expect(memory.get_by_role("status")).to_contain_text(re.compile(r"\b1\b.*: .* GB-hours"))
    page.keyboard.press("ArrowRight")
    expect(memory.get_by_role("status")).to_contain_text(re.compile(r"\b2\b.*: .* GB-hours"))
    page.keyboard.press("Escape")
    expect(memory.get_by_role("status")).to_have_text("GB-hours a day")

    with page.expect_download() as started:
        page.get_by_role("link", name="CSV").click()
    assert re.fullmatch(r"usage-\d{4}-\d\d-01-\d{4}-\d\d-\d\d\.csv", started.value.suggested_filename)
    assert ",Metered,workspace," in started.value.path().read_text()

    # One that is still starting would be stopped: it has nothing yet that could go on
    page.goto("/")
    expect(page.get_by_role("row", name=re.compile("Metered"))).to_contain_text("Running")
    page.goto("/usage")
    page.get_by_role("link", name="Set one").click()
    expect(page.get_by_role("row", name=re.compile("Sandboxes running at a time"))).to_contain_text("1")
    page.get_by_label("Spending cap").fill("0")
    page.get_by_role("button", name="Set cap").click()
    expect(page.get_by_text("The spending cap is set.")).to_be_visible()
    page.get_by_role("link", name="Usage").click()
    expect(page.get_by_role("alert")).to_contain_text("spending cap is reached")
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "100")

    page.goto("/")
    halted = page.get_by_role("row", name=re.compile("Metered"))
    expect(halted).to_contain_text("spending cap for this month is reached")
    halted.get_by_role("button", name="Resume").click()
    expect(page.get_by_text("an owner can raise the cap").last).to_be_visible()


def test_the_page_fits_a_narrow_screen_in_both_themes(page: Page, machine: str, complaints: list[str]) -> None:
    """Nothing is wider than the screen, and the charts are drawn anew with the other theme's colours."""
    page.set_viewport_size({"width": 360, "height": 740})
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        page.goto("/usage")
        expect(page.get_by_test_id("total")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert complaints == []
