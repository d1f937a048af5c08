"""Ports in a real browser: seen, exposed to members and by a link, visited, and closed again."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import PATIENCE, Place, Workspace
from tests.installation import free_port


def test_a_port_is_exposed_and_visited(
    page: Page,
    workspace: Workspace,
    machine: str,
    browser: Browser,
    place: Place,
    signed_in: Any,
    complaints: list[str],
) -> None:
    """What listens is listed; a member comes in by his session, others by a link, and nobody once it is closed."""
    port = free_port()
    workspace.run("mkdir -p site && echo 'hello from inside' > site/index.html")
    workspace.run(f"(cd site && python3 -m http.server {port} > /dev/null 2>&1 &)")
    page.goto(f"{machine}/details#ports")
    row = page.get_by_role("region", name="Listening").get_by_role("row", name=re.compile(str(port)))
    expect(row).to_contain_text("python3")
    row.get_by_role("button", name=f"Expose port {port}").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_label("Port")).to_have_value(str(port))
    expect(dialog.get_by_label("Members")).to_be_checked()
    dialog.get_by_role("button", name="Expose", exact=True).click()
    exposed = page.get_by_role("region", name="Exposed").get_by_role("row", name=re.compile("Members"))
    expect(exposed).to_contain_text(f"port {port}")
    url = exposed.get_by_role("link").get_attribute("href")
    assert url is not None
    expect(row.get_by_role("button")).to_have_count(0)

    member = browser.new_context(storage_state=signed_in, ignore_https_errors=True)
    stranger = browser.new_context(ignore_https_errors=True)
    for context in (member, stranger):
        context.set_default_timeout(PATIENCE)
    try:
        inside = member.new_page()
        inside.goto(url)
        expect(inside.get_by_text("hello from inside")).to_be_visible()
        assert inside.url == f"{url}/"
        outside = stranger.new_page()
        outside.goto(url)
        outside.wait_for_url(f"{place.url}/login**")

        page.get_by_role("button", name="Expose a port").click()
        dialog.get_by_label("Port").fill(str(port))
        dialog.get_by_label("Whoever has a link").check()
        dialog.get_by_role("button", name="Expose", exact=True).click()
        link = page.get_by_role("region", name="The new link").locator("code").inner_text()
        page.get_by_role("button", name="I have it").click()
        expect(page.get_by_text(link)).to_have_count(0)
        outside.goto(link)
        expect(outside.get_by_text("hello from inside")).to_be_visible()
        assert "token" not in outside.url

        exposed.get_by_role("button", name=f"Close port {port}").click()
        page.get_by_role("alertdialog").get_by_role("button", name="Close it").click()
        expect(exposed).to_have_count(0)
        answer = inside.goto(url)
        assert answer is not None
        assert answer.status == 404
    finally:
        member.close()
        stranger.close()
    expect(page.get_by_role("region", name="SSH")).to_contain_text("sbx_")
    assert not complaints
