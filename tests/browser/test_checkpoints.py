"""A workspace's timeline in a real browser: taken, looked into, compared, gone back to, and begun from anew."""

from __future__ import annotations

from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import create


def test_a_timeline(page: Page, complaints: list[str]) -> None:
    """Two checkpoints differ by what was written between them; the first is restored, and a workspace made of it."""
    workspace = create(page, "Tides")
    address = page.url
    workspace.run("echo one > state; mkdir -p srv; echo x > srv/inside")
    page.goto(f"{address}/details#checkpoints")
    dialog = page.get_by_role("dialog")

    def take(note: str) -> Locator:
        page.get_by_role("button", name="Take one now").click()
        dialog.get_by_label("Note").fill(note)
        dialog.get_by_role("button", name="Take it").click()
        row = page.get_by_role("row").filter(has_text=note)
        expect(row).to_contain_text("By hand")
        return row

    first = take("before the flood")
    page.goto(address)
    workspace.wait_for_shell()
    workspace.run("echo three > state; echo y > srv/more")
    page.goto(f"{address}/details#checkpoints")
    second = take("after the flood")

    first.get_by_role("button", name="Files of").click()
    files = page.get_by_role("region", name="Files of")
    for directory in ("home/", "app/"):  # a guest in memory has its home as its disk
        expect(files.get_by_role("row").nth(1)).to_be_visible()
        if (down := files.get_by_role("button", name=directory, exact=True)).count():
            down.click()
            expect(down).to_have_count(0)
    expect(files.get_by_role("row").filter(has_text="state")).to_contain_text("4 B")
    files.get_by_role("button", name="srv/").click()
    expect(files.get_by_role("row").filter(has_text="inside")).to_be_visible()
    expect(files.get_by_role("row").filter(has_text="more")).to_have_count(0)
    second.get_by_role("button", name="Changes from").click()
    changes = page.get_by_role("region", name="Changes of")
    expect(changes.get_by_role("row").filter(has_text="/srv/more")).to_contain_text("Added")
    expect(changes.get_by_role("row").filter(has_text="/state")).to_contain_text("Changed")
    expect(changes.get_by_role("row").filter(has_text="/srv/inside")).to_have_count(0)
    changes.get_by_role("button", name="Close").click()

    page.get_by_label("By time").select_option(label="Every 15 min of use")
    expect(page.get_by_text("Saved")).to_be_visible()
    first.get_by_role("button", name="Restore").click()
    page.get_by_role("alertdialog").get_by_role("button", name="Restore").click()
    expect(page.get_by_role("row").filter(has_text="Before a restore")).to_be_visible()
    expect(page.locator(".page__head .badge")).to_have_text("Running")
    page.goto(address)
    workspace.wait_for_shell()
    assert "one" in workspace.run("cat state")

    page.goto(f"{address}/details#checkpoints")
    expect(page.get_by_label("By time")).to_have_value("15")
    second.get_by_role("button", name="New workspace of").click()
    dialog.get_by_role("button", name="Create workspace").click()
    page.wait_for_url(lambda url: "/details" not in url and url != address)
    workspace.wait_for_shell()
    assert "three" in workspace.run("cat state")
    page.goto(f"{address}/details#checkpoints")
    second.get_by_role("button", name="Drop").click()
    page.get_by_role("alertdialog").get_by_role("button", name="Drop it").click()
    expect(second).to_have_count(0)
    assert not complaints
