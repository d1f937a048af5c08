"""Suspending, resuming, forking, deleting and restoring, and the page of a sandbox's life, as a person sees them."""

from __future__ import annotations

import re
import uuid

from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import Workspace, act, create, until


def unique(stem: str) -> str:
    return f"{stem} {uuid.uuid4().hex[:8]}"


def row(page: Page, name: str) -> Locator:
    return page.get_by_role("row", name=re.compile(name))


def choose(page: Page, name: str, choice: str) -> None:
    """From the dashboard's menu of one row."""
    act(page, f"Actions for {name}", choice)


def test_a_workspace_is_suspended_and_resumed_from_the_dashboard(page: Page, complaints: list[str]) -> None:
    """The row says what it is, by whose wish, and what to press; the shell goes on afterwards."""
    name = unique("Dunes")
    path = create(page, name).page.url
    page.goto("/")
    choose(page, name, "Suspend")
    expect(row(page, name).get_by_text("Suspended", exact=True)).to_be_visible()
    expect(row(page, name)).to_contain_text(re.compile("on request by", re.IGNORECASE))
    row(page, name).get_by_role("button", name=f"Resume {name}").click()
    expect(row(page, name).get_by_text("Running")).to_be_visible()
    row(page, name).get_by_role("link", name="Open").click()
    page.wait_for_url(path)
    Workspace(page).wait_for_shell()
    assert complaints == []


def test_a_suspended_workspace_keeps_its_screens_and_goes_on_with_any_key(page: Page) -> None:
    """Screen, unsaved text and the shell with its variables are there before, during and after; nothing is reloaded."""
    name, word = unique("Lagoon"), uuid.uuid4().hex[:8]
    workspace = create(page, name)
    workspace.run(f"KEPT={word}; echo 'x = 1' > tide.py")
    workspace.file("tide.py").click()
    expect(workspace.editor()).to_contain_text("x = 1")
    page.keyboard.press("Control+End")
    page.keyboard.type("y = 2")
    expect(workspace.tab("tide.py")).to_contain_text("not saved")
    workspace.type("echo on-the-screen-$KEPT")
    until(lambda: f"on-the-screen-{word}" in workspace.screen(), "the command did not run")
    terminal = page.locator('[data-area="terminal"]').get_attribute("data-terminal")
    page.evaluate("window.sameDocument = true")

    act(page, "Machine", "Suspend")
    cover = page.get_by_role("region", name="The machine stands still")
    expect(cover).to_contain_text("Press any key or Resume to go on")
    expect(cover).to_contain_text(re.compile("on request by", re.IGNORECASE))
    assert f"on-the-screen-{word}" in workspace.screen()
    expect(workspace.editor()).to_be_visible()
    # Nothing that connects by itself may wake it.
    page.wait_for_timeout(3000)
    expect(cover.get_by_role("button", name="Resume")).to_be_focused()

    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    expect(cover).to_contain_text("Press any key")
    page.keyboard.press("g")
    expect(cover).to_have_count(0)
    workspace.wait_for_shell()
    until(lambda: bool(page.evaluate("!!document.activeElement.closest('[data-area=terminal]')")), "no focus")
    assert f"on-the-screen-{word}" in workspace.screen()
    assert page.locator('[data-area="terminal"]').get_attribute("data-terminal") == terminal
    assert word in workspace.run("echo $KEPT")
    expect(workspace.tab("tide.py")).to_contain_text("not saved")
    workspace.editor().click()
    page.keyboard.press("Control+s")
    expect(workspace.tab("tide.py")).not_to_contain_text("not saved")
    assert "y = 2" in workspace.run("cat tide.py")
    assert page.evaluate("window.sameDocument")


def test_opening_a_suspended_workspace_resumes_it(page: Page) -> None:
    """No button is asked for, and the same shell is there."""
    name, word = unique("Reef"), uuid.uuid4().hex[:8]
    workspace = create(page, name)
    workspace.run(f"KEPT={word}")
    path = page.url
    page.goto("/")
    choose(page, name, "Suspend")
    expect(row(page, name).get_by_text("Suspended", exact=True)).to_be_visible()
    page.goto(path)
    workspace.wait_for_shell()
    assert word in workspace.run("echo $KEPT")


def test_the_details_page_tells_a_life_as_it_goes_on(page: Page, complaints: list[str]) -> None:
    """Entries arrive by themselves, with who and how long; settings are kept; what the machine uses is shown."""
    name = unique("Harbour")
    create(page, name)
    act(page, "Machine", "Details")
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    life = page.get_by_role("region", name="Timeline").get_by_role("listitem")
    expect(life.first).to_contain_text("Running")
    expect(life.first.get_by_role("list", name="Stages")).to_contain_text(re.compile(r"\d (ms|s)"))
    expect(page.get_by_role("region", name="Now")).to_contain_text(re.compile(r"of [\d.]+ [GM]iB"))

    page.get_by_role("button", name="Suspend").click()
    entry = page.locator("[data-entry=suspended]").first
    expect(entry).to_be_visible()
    expect(page.get_by_role("region", name="Now")).to_contain_text("stands still")
    page.get_by_role("button", name="Resume").click()
    expect(life.first).to_contain_text("Running")
    expect(entry).not_to_contain_text("so far")

    idle = page.get_by_label("Suspend when idle")
    idle.select_option("never")
    expect(page.get_by_text("Saved")).to_be_visible()
    page.reload()
    expect(idle).to_have_value("never")
    idle.select_option("after")
    page.get_by_label("Minutes").fill("45")
    page.keyboard.press("Enter")
    expect(idle.locator("option:checked")).to_have_text("After 45 min")
    with page.expect_response(lambda answer: answer.request.method == "PATCH"):
        idle.select_option("default")
    page.reload()
    expect(idle).to_have_value("default")
    assert complaints == []


def test_a_deleted_workspace_is_restored_with_its_files(page: Page) -> None:
    """The question says what is kept; the dashboard lists it until it is brought back."""
    name, word = unique("Sandcastle"), uuid.uuid4().hex[:8]
    workspace = create(page, name)
    workspace.run(f"echo {word} > note.txt")
    path = page.url
    page.goto("/")
    choose(page, name, "Delete")
    question = page.get_by_role("alertdialog")
    expect(question).to_contain_text("kept for a day")
    question.get_by_role("button", name="Delete").click()
    expect(row(page, name)).to_have_count(0)
    deleted = page.get_by_role("region", name="Deleted").get_by_role("listitem").filter(has_text=name)
    expect(deleted).to_contain_text("can be restored until")
    deleted.get_by_role("button", name=f"Restore {name}").click()
    expect(deleted).to_have_count(0)
    row(page, name).get_by_role("button", name=f"Start {name}").click()
    expect(row(page, name).get_by_text("Running")).to_be_visible()
    page.goto(path)
    workspace.wait_for_shell()
    assert word in workspace.run("cat note.txt")


def test_a_workspace_deleted_under_its_page_can_be_restored_there(page: Page) -> None:
    """Whoever has it open is told, and brings it back without leaving."""
    workspace = create(page, unique("Wreck"))
    act(page, "Machine", "Delete")
    page.get_by_role("alertdialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", name="This workspace was deleted")).to_be_visible()
    page.get_by_role("button", name="Restore it").click()
    page.get_by_role("button", name="Start it again").click()
    workspace.wait_for_shell()


def test_a_fork_opens_beside_its_original(page: Page) -> None:
    """Both go on, the fork with the original's files under a name of its own."""
    name, word = unique("Island"), uuid.uuid4().hex[:8]
    workspace = create(page, name)
    workspace.run(f"echo {word} > note.txt; KEPT={word}")
    act(page, "Machine", "Fork")
    expect(page.get_by_label("Name of the fork")).to_have_value(f"{name} (fork)")
    page.get_by_label("Name of the fork").fill(f"{name} two")
    with page.context.expect_page() as opened:
        page.keyboard.press("Enter")
    fork = Workspace(opened.value)
    fork.wait_for_shell()
    expect(fork.page.get_by_role("heading", name=f"{name} two")).to_be_visible()
    assert word in fork.run("cat note.txt")
    expect(page.get_by_text(f"Forked as {name} two")).to_be_visible()
    assert word in workspace.run("echo $KEPT")
    fork.page.close()


def test_everything_of_the_dashboard_fits_a_narrow_screen_and_the_keyboard(page: Page) -> None:
    """At 360 pixels nothing sticks out, and a menu is opened, walked and closed by keys."""
    name = unique("A rather long name for a small screen")
    create(page, name)
    page.set_viewport_size({"width": 360, "height": 780})
    page.goto("/")
    menu = page.get_by_role("button", name=f"Actions for {name}")
    menu.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("menuitem").first).to_be_focused()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Escape")
    expect(menu).to_be_focused()
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not page.evaluate(wide)
    row(page, name).get_by_role("link", name=name).press("Tab")
    choose(page, name, "Details")
    expect(page.get_by_role("region", name="Timeline")).to_be_visible()
    assert not page.evaluate(wide)
