"""Signing in, the dashboard, tokens, members and themes, in a real browser."""

from __future__ import annotations

import re
import secrets
from typing import Any

from playwright.sync_api import Page, expect

from tests.browser.conftest import Place, Workspace, act, create, until


def test_a_sign_in_link_works_once(place: Place, browser: Any) -> None:
    """The first use signs in; the second says why it does not."""
    link = place.login_link()
    first = browser.new_context().new_page()
    first.goto(link)
    first.get_by_role("button", name="Sign in to Atoll").click()
    expect(first.get_by_role("heading", name="Sandboxes")).to_be_visible()

    second = browser.new_context().new_page()
    second.goto(link)
    expect(second.get_by_role("heading", name="This link does not work any more")).to_be_visible()
    first.context.close()
    second.context.close()


def test_a_stranger_is_sent_to_sign_in_and_a_wrong_password_is_refused(place: Place, browser: Any) -> None:
    page = browser.new_context(base_url=place.url).new_page()
    page.goto("/tokens")
    assert "/login?next=/tokens" in page.url
    page.get_by_label("Email address").fill("nobody@home.example")
    page.get_by_label("Password").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("do not fit together")
    page.context.close()


def test_a_token_is_shown_once_and_can_be_revoked(page: Page, place: Place, complaints: list[str]) -> None:
    """What is shown opens the API; after the revocation it does not."""
    page.goto("/tokens")
    page.get_by_role("button", name="New token").first.click()
    page.get_by_label("Name", exact=True).fill("Browser test")
    page.get_by_role("button", name="Create token").click()
    secret = page.get_by_test_id("token-secret").inner_text()
    assert secret.startswith("ddo_")
    api = f"{place.url}/api/v1/sandboxes"
    headers = {"Authorization": f"Bearer {secret}"}
    assert page.request.get(api, headers={**headers, "Cookie": ""}).status == 200
    page.get_by_role("button", name="I have copied it").click()
    expect(page.get_by_text(secret)).to_have_count(0)

    page.get_by_role("row", name=re.compile("Browser test")).get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("alertdialog")).to_contain_text("within about five seconds")
    page.get_by_role("alertdialog").get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("row", name=re.compile("Browser test"))).to_have_count(0)
    assert page.request.get(api, headers={**headers, "Cookie": ""}).status == 401
    assert all("401" in text for text in complaints)


def test_somebody_can_be_invited_given_a_role_and_removed(page: Page, place: Place, browser: Any) -> None:
    """A renewed invitation ends the one before; whoever comes by it is told to set a password, and is here then."""
    page.goto("/members")
    page.get_by_role("button", name="Invite").click()
    page.get_by_label("Email address").fill("grace@home.example")
    page.get_by_role("radio", name="Viewer").check()
    page.get_by_role("dialog").get_by_role("button", name="Invite").click()
    shown = page.get_by_role("region", name="Sign-in link").locator("pre")
    expect(shown).to_contain_text("/login/")
    first = shown.inner_text()
    row = page.get_by_role("row", name=re.compile("grace@home.example"))
    expect(row).to_contain_text("link works until")
    row.get_by_role("button", name="New link").click()
    expect(shown).not_to_have_text(first)

    theirs = browser.new_context(base_url=place.url).new_page()
    theirs.goto(first)
    expect(theirs.get_by_role("heading", name="This link does not work any more")).to_be_visible()
    theirs.goto(shown.inner_text())
    theirs.get_by_role("button", name="Sign in to Atoll").click()
    theirs.get_by_role("link", name="Set a password").first.click()
    theirs.get_by_label("New password", exact=True).fill("tides come and go")
    theirs.get_by_label("New password confirmation").fill("tides come and go")
    theirs.get_by_role("button", name="Set password").click()
    expect(theirs.get_by_text("Your password is set")).to_be_visible()
    theirs.context.close()

    page.reload()
    expect(row.get_by_role("button", name="New link")).to_have_count(0)
    expect(row.get_by_role("combobox")).to_have_value("viewer")
    with page.expect_response(lambda answer: answer.request.method == "PATCH"):
        row.get_by_role("combobox").select_option("admin")
    page.reload()
    expect(row.get_by_role("combobox")).to_have_value("admin")
    row.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("alertdialog")).to_contain_text("within about five seconds")
    page.get_by_role("alertdialog").get_by_role("button", name="Remove").click()
    expect(row).to_have_count(0)


def test_another_password_ends_other_browsers_and_not_this_one(
    page: Page, place: Place, browser: Any, machine: str
) -> None:
    """A workspace open in the same browser goes on; the one that was left open elsewhere says that it is signed out."""
    page.goto("/members")
    page.get_by_role("button", name="Invite").click()
    page.get_by_label("Email address").fill("mary@home.example")
    page.get_by_role("dialog").get_by_role("button", name="Invite").click()
    here = browser.new_context(base_url=place.url)
    tab = here.new_page()
    tab.goto(page.get_by_role("region", name="Sign-in link").locator("pre").inner_text())
    tab.get_by_role("button", name="Sign in to Atoll").click()

    def set_password(password: str) -> None:
        tab.goto("/password")
        tab.get_by_label("New password", exact=True).fill(password)
        tab.get_by_label("New password confirmation").fill(password)
        if (old := tab.get_by_label("Old password")).count():
            old.fill("tides come and go")
        tab.get_by_role("button", name=re.compile("(Set|Change) password")).click()
        expect(tab.get_by_text("Your password is set")).to_be_visible()

    set_password("tides come and go")
    elsewhere = browser.new_context(base_url=place.url).new_page()
    elsewhere.goto(f"/login?next={machine}")
    elsewhere.get_by_label("Email address").fill("mary@home.example")
    elsewhere.get_by_label("Password").fill("tides come and go")
    elsewhere.get_by_role("button", name="Sign in").click()
    same = here.new_page()
    same.goto(machine)
    for workspace in (Workspace(elsewhere), Workspace(same)):
        workspace.wait_for_shell()
    set_password("and the moon pulls")
    expect(elsewhere.get_by_role("alert")).to_contain_text("You are signed out")
    Workspace(same).wait_for_shell()
    assert "12" in Workspace(same).run("echo $((3 * 4))")
    expect(same.get_by_role("alert")).to_have_count(0)
    elsewhere.context.close()
    here.close()


def test_an_organization_is_made_named_and_left_by_keyboard(page: Page, complaints: list[str]) -> None:
    """The menu beside the name opens by an arrow key, and arrows go round in it."""
    page.goto("/")
    menu = page.get_by_label(re.compile("^Organization: "))
    first = menu.inner_text()
    menu.focus()
    for key in ("ArrowDown", "End", "Enter"):
        page.keyboard.press(key)
    expect(page.get_by_label("Name", exact=True)).to_be_focused()
    page.keyboard.type("Tide Lab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status").filter(has_text="Tide Lab is ready")).to_be_visible()
    expect(page.get_by_text("No machines yet")).to_be_visible()

    menu.click()
    page.get_by_role("link", name="Organization settings").click()
    page.get_by_label("Name", exact=True).fill("Harbour")
    page.get_by_role("button", name="Save").click()
    expect(menu).to_have_text("Harbour")

    menu.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Escape")
    expect(menu).to_be_focused()
    expect(page.get_by_role("button", name=re.compile("^Harbour"))).to_be_hidden()
    # Harbour comes first by its name, and is where we are.
    for key in ("ArrowDown", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    expect(menu).to_have_text(first)
    assert complaints == []


def test_the_dashboard_follows_a_machine_live(page: Page, machine: str, place: Place) -> None:
    """A second page sees creation, stop with its reason, start and deletion without being reloaded."""
    page.goto("/")
    other = page.context.new_page()
    other.goto("/")
    other.get_by_role("button", name="New workspace").first.click()
    other.get_by_label("Name", exact=True).fill("Seen live")
    other.get_by_role("button", name="Create workspace").click()
    row = page.get_by_role("row", name=re.compile("Seen live"))
    expect(row.get_by_text("Running")).to_be_visible()
    expect(row).to_contain_text("1280 MiB")
    expect(row.locator('[data-label="Age"]')).to_have_text(re.compile(r"^up \d+ (s|min)$"))
    expect(row.locator('[data-label="Created by"]')).to_have_text(re.compile(r"^\S+@\S+$"))
    other.close()

    act(page, "Actions for Seen live", "Stop")
    page.get_by_role("alertdialog").get_by_role("button", name="Stop").click()
    expect(row).to_contain_text("Stopped on request by")
    row.get_by_role("button", name="Start Seen live").click()
    expect(row.get_by_text("Running")).to_be_visible()
    act(page, "Actions for Seen live", "Delete")
    page.get_by_role("alertdialog").get_by_role("button", name="Delete").click()
    expect(row).to_have_count(0)


def test_a_workspace_is_renamed_where_it_is_and_on_the_dashboard(page: Page) -> None:
    """Each page sees at once what was done on the other, and Escape changes nothing."""
    # Its own, and called otherwise at a second try: the first may have left it under either name
    before, after = f"Quay {secrets.token_hex(3)}", f"Harbour {secrets.token_hex(3)}"
    dashboard = page.context.new_page()
    dashboard.goto("/")
    create(page, before)
    page.get_by_role("heading", name=before).get_by_role("button").click()
    page.get_by_role("textbox", name="Name").fill("Nobody's")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("F1")
    page.keyboard.type("rename the workspace")
    page.keyboard.press("Enter")
    expect(page.get_by_role("textbox", name="Name")).to_have_value(before)
    page.get_by_role("textbox", name="Name").fill(after)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name=after)).to_be_visible()
    act(dashboard, f"Actions for {after}", "Rename")
    dashboard.get_by_role("textbox", name="Name").fill(before)
    dashboard.get_by_role("dialog").get_by_role("button", name="Rename").click()
    expect(page.get_by_role("heading", name=before)).to_be_visible()
    until(lambda: page.title() == f"{before} · Atoll", "the title kept the old name")
    dashboard.close()


def test_the_theme_follows_the_system_until_somebody_chooses(page: Page) -> None:
    """Dark and light by preference; a choice is remembered and sent to the server."""
    theme = "document.documentElement.dataset.theme"
    page.goto("/tokens")
    assert page.evaluate(theme) == "dark"
    page.emulate_media(color_scheme="light")
    until(lambda: page.evaluate(theme) == "light", "the theme did not follow the system")
    page.get_by_role("button", name="Switch between dark and light").click()
    assert page.evaluate(theme) == "dark"
    page.reload()
    assert page.evaluate(theme) == "dark"
    assert 'data-theme="dark" data-theme-chosen' in page.request.get("/members").text()


def test_what_is_not_there_says_so(page: Page) -> None:
    answer = page.goto("/sandboxes/sbx_loc_00000000000000000000")
    assert answer is not None
    assert answer.status == 404
    expect(page.get_by_role("heading", name="There is nothing at this address")).to_be_visible()


def test_the_rest_api_is_documented_and_tried_out(page: Page, complaints: list[str]) -> None:
    """From the account menu; every noun is there, and what is tried is asked as whoever looks, without a token."""
    page.goto("/")
    page.get_by_label("Your account").click()
    page.get_by_role("link", name="REST API").click()
    for tag in ("sandboxes", "volumes", "apps", "tokens"):
        expect(page.locator(f'.opblock-tag[data-tag="{tag}"]')).to_be_visible()
    page.locator('.opblock-tag[data-tag="organization"]').click()
    me = page.locator(".opblock", has_text="/api/v1/me")
    me.locator(".opblock-summary-control").click()
    me.get_by_role("button", name="Try it out").click()
    me.get_by_role("button", name="Execute").click()
    answer = me.locator(".live-responses-table")
    expect(answer.locator(".response-col_status").last).to_contain_text("200")
    expect(answer.locator(".highlight-code").first).to_contain_text('"slug": "home"')
    assert complaints == []
