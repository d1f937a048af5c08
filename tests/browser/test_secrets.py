"""Secrets in a real browser: made, given another value and revoked by keyboard too, and no value comes back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, Response, expect

from tests.browser.conftest import Workspace

VALUE = "v4lue-of-the-browser"


@pytest.fixture
def heard(page: Page) -> Iterator[list[str]]:
    """All that the server said to the page over HTTP and its sockets; no value is in it, nor in what is on the page."""
    found: list[str] = []

    def keep(response: Response) -> None:
        if "/api/v1/" in response.url and response.request.method != "DELETE":
            found.append(response.text())

    page.on("response", keep)
    page.on(
        "websocket",
        lambda socket: socket.on(
            "framereceived", lambda data: found.append(data if isinstance(data, str) else data.decode("latin-1"))
        ),
    )
    yield found
    assert found
    assert not [text for text in found if VALUE in text]
    assert VALUE not in page.content()


def fill(dialog: Locator, name: str, value: str, hosts: str) -> None:
    if name:
        dialog.get_by_label("Name", exact=True).fill(name)
    dialog.get_by_label(re.compile("^(New v|V)alue$")).fill(value)
    dialog.get_by_label("Hosts it is sent to").fill(hosts)


def test_the_organizations(page: Page, heard: list[str], complaints: list[str]) -> None:
    """A wrong name is told as it is typed; a value is in a password field, and gone when the dialog comes again."""
    page.goto("/")
    page.get_by_role("link", name="Secrets").click()
    expect(page.get_by_role("heading", name="No secrets yet")).to_be_visible()
    expect(page.get_by_text("sees only a placeholder")).to_be_visible()
    page.get_by_role("button", name="New secret").click()
    dialog = page.get_by_role("dialog")
    create = dialog.get_by_role("button", name="Create secret")
    dialog.get_by_label("Name", exact=True).fill("1ST-KEY")
    expect(dialog.get_by_role("alert")).to_contain_text("letters, digits and underscores")
    expect(create).to_be_disabled()
    fill(dialog, "API_KEY", VALUE, "https://api.example.com")
    assert dialog.get_by_label("Value", exact=True).get_attribute("type") == "password"
    create.click()
    expect(page.get_by_text("a host is expected, not a URL")).to_be_visible()
    dialog.get_by_label("Hosts it is sent to").fill("api.example.com\n*.example.org:8443")
    dialog.get_by_label("Query").check()
    dialog.get_by_label("Those with a label").check()
    dialog.get_by_label("Key of the label").fill("team")
    dialog.get_by_label("Value of the label").fill("payments")
    create.click()
    row = page.get_by_role("row", name=re.compile("^API_KEY"))
    for text in ("api.example.com", "*.example.org:8443", "Headers and query", "Those labelled team: payments"):
        expect(row).to_contain_text(text)

    page.get_by_role("button", name="New value for API_KEY").click()
    expect(dialog.get_by_label("New value", exact=True)).to_have_value("")
    expect(dialog.get_by_label("Hosts it is sent to")).to_have_value("api.example.com\n*.example.org:8443")
    dialog.get_by_label("New value", exact=True).fill(f"{VALUE}-two")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="New value for API_KEY").click()
    expect(dialog.get_by_label("New value", exact=True)).to_have_value("")
    dialog.get_by_label("New value", exact=True).fill(f"{VALUE}-two")
    page.keyboard.press("Enter")
    expect(page.get_by_text("API_KEY has another value")).to_be_visible()
    expect(row).to_contain_text("just now")

    # The dialog before gives the focus back once it has closed
    expect(dialog).to_have_count(0)
    expect(page.get_by_role("button", name="New value for API_KEY")).to_be_focused()
    page.get_by_role("button", name="Revoke API_KEY").press("Enter")
    expect(page.get_by_role("alertdialog")).to_contain_text("cannot be brought back")
    page.keyboard.press("Enter")
    expect(row).to_be_visible()
    page.get_by_role("button", name="Revoke API_KEY").click()
    page.get_by_role("alertdialog").get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("heading", name="No secrets yet")).to_be_visible()
    # The wrong pattern was refused, and the browser says so too.
    assert [text for text in complaints if "400" not in text] == []


def test_a_sandboxs_own(page: Page, workspace: Workspace, machine: str, heard: list[str]) -> None:
    """What is made on its page is a placeholder in its next shell; its timeline tells; open pages hear of changes."""
    page.goto(f"{machine}/details#secrets")
    page.get_by_role("button", name="New secret").click()
    fill(page.get_by_role("dialog"), "PAGE_KEY", VALUE, "api.example.com")
    page.get_by_role("button", name="Create secret").click()
    row = page.get_by_role("row", name=re.compile("^PAGE_KEY"))
    expect(row).to_contain_text("Headers")
    tabs = page.get_by_role("navigation", name="Of this sandbox")
    tabs.get_by_role("link", name="Overview").click()
    expect(page.get_by_text("The secret PAGE_KEY was added")).to_be_visible()
    tabs.get_by_role("link", name="Secrets").click()

    inside = page.context.new_page()
    inside.goto(machine)
    shell = Workspace(inside)
    shell.wait_for_shell()
    # A shell that was there before does not have it; a new one does.
    inside.get_by_role("button", name="New terminal").first.click()
    expect(inside.get_by_role("tab", name=re.compile("2"))).to_be_visible()
    shell.wait_for_shell()
    screen = shell.run("echo [$PAGE_KEY]")
    assert re.search(r"\[DENO_SECRET_PLACEHOLDER_[0-9a-f\s]{32,}", screen)
    assert VALUE not in screen
    inside.close()

    second = page.context.new_page()
    second.goto(f"{machine}/details#secrets")
    second.get_by_role("button", name="Revoke PAGE_KEY").click()
    second.get_by_role("alertdialog").get_by_role("button", name="Revoke").click()
    expect(second.get_by_role("row", name=re.compile("^PAGE_KEY"))).to_have_count(0)
    second.close()
    expect(row).to_have_count(0)
    expect(page.get_by_text("One that is made here is for this sandbox only")).to_be_visible()


@pytest.mark.parametrize("path", ["/secrets", "details"])
def test_narrow_screens_in_both_themes(page: Page, machine: str, complaints: list[str], path: str) -> None:
    """Nothing is wider than the screen, the dialog included."""
    where = f"{machine}/details#secrets" if path == "details" else path
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(where)
    page.get_by_role("button", name="New secret").click()
    fill(page.get_by_role("dialog"), "A_RATHER_LONG_NAME_OF_A_SECRET_KEY", VALUE, f"{'a' * 60}.example.com")
    page.get_by_role("button", name="Create secret").click()
    expect(page.get_by_text("A_RATHER_LONG_NAME_OF_A_SECRET_KEY", exact=True)).to_be_visible()
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.get_by_role("button", name="New value for").click()
        expect(page.get_by_role("dialog")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.keyboard.press("Escape")
    page.get_by_role("button", name="Revoke A_RATHER").click()
    page.get_by_role("alertdialog").get_by_role("button", name="Revoke").click()
    expect(page.get_by_text("A_RATHER_LONG_NAME_OF_A_SECRET_KEY", exact=True)).to_have_count(0)
    assert complaints == []


def test_viewers_are_told(page: Page, machine: str, browser: Any, base_url: str) -> None:
    """Where somebody may not look he reads why, and a sandbox's page has no secrets for him."""
    page.goto("/members")
    page.get_by_role("button", name="Invite").click()
    page.get_by_label("Email address").fill("looks@home.example")
    page.get_by_label("Viewer").check()
    page.get_by_role("dialog").get_by_role("button", name="Invite").click()
    link = page.get_by_label("Sign-in link").locator("pre").inner_text()
    context = browser.new_context(base_url=base_url)
    looks = context.new_page()
    looks.goto(link)
    looks.get_by_role("button", name="Sign in to Atoll").click()
    looks.goto("/secrets")
    expect(looks.get_by_text("viewers do not")).to_be_visible()
    looks.goto(f"{machine}/details")
    expect(looks.get_by_role("heading", name="Timeline")).to_be_visible()
    expect(looks.get_by_role("link", name="Secrets")).to_have_count(1)
    context.close()
