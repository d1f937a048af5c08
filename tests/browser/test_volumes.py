"""Volumes and snapshots in a real browser: made, mounted, grown, kept, booted from, deleted and brought back."""

from __future__ import annotations

import re
import time

from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import Workspace, act


def row(page: Page, slug: str) -> Locator:
    """The row of a volume or snapshot."""
    return page.locator(f'tr[data-volume="{slug}"]')


def test_a_volume_and_its_snapshot(page: Page, workspace: Workspace, machine: str, complaints: list[str]) -> None:
    """A new volume is attached to a machine that runs, written to, grown, kept as a snapshot, and detached."""
    mark = str(time.time_ns())[-8:]
    data, kept, copy = f"data-{mark}", f"kept-{mark}", f"copy-{mark}"
    place = f"/mnt/atoll-{mark}"
    page.goto("/volumes")
    page.get_by_role("button", name="New volume").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill(data)
    dialog.get_by_label("Capacity in GB").fill("1")
    dialog.get_by_role("button", name="Create volume").click()
    expect(row(page, data)).to_contain_text("of 1.0 GB")
    expect(row(page, data)).to_contain_text("Nobody")

    row(page, data).get_by_role("button", name=f"Attach: {data}").click()
    dialog.get_by_label("Sandbox").select_option(label="Shared")
    dialog.get_by_label("Path").fill(place)
    dialog.get_by_role("button", name="Attach", exact=True).click()
    expect(row(page, data)).to_contain_text(f"Shared {place}")
    page.goto(machine)
    workspace.wait_for_shell()
    workspace.run(f"echo 'high water' > {place}/tide")

    page.goto("/volumes")
    act(page, f"Actions for {data}", "Grow…")
    dialog.get_by_label("Capacity in GB").fill("3")
    dialog.get_by_role("button", name="Grow", exact=True).click()
    expect(row(page, data)).to_contain_text("of 3.0 GB")
    row(page, data).get_by_role("button", name=f"Snapshot: {data}").click()
    dialog.get_by_label("Name").fill(kept)
    dialog.get_by_role("button", name="Take the snapshot").click()
    expect(dialog).to_have_count(0)
    row(page, data).get_by_role("button", name=f"Detach {data} from Shared").click()
    page.get_by_role("alertdialog").get_by_role("button", name="Detach").click()
    expect(row(page, data)).to_contain_text("Nobody")

    page.get_by_role("link", name="Snapshots").click()
    page.get_by_label("Name contains").fill(kept)
    expect(page.locator("tr[data-volume]")).to_have_count(1)
    expect(row(page, kept)).to_contain_text(f"of {data}")
    row(page, kept).get_by_role("button", name="New volume from it").click()
    dialog.get_by_label("Name").fill(copy)
    dialog.get_by_role("button", name="Create volume").click()
    expect(dialog).to_have_count(0)
    act(page, f"Actions for {kept}", "Lineage")
    expect(dialog.get_by_role("listitem").filter(has_text=data)).to_contain_text("volume")
    expect(dialog.get_by_role("listitem").filter(has_text=copy)).to_contain_text("volume")
    page.keyboard.press("Escape")

    page.goto("/volumes")
    act(page, f"Actions for {data}", "Delete…")
    page.get_by_role("alertdialog").get_by_role("button", name="Delete").click()
    expect(row(page, data)).to_have_count(0)
    page.get_by_role("button", name=f"Restore {data}").click()
    expect(row(page, data)).to_be_visible()
    page.get_by_label("Name contains").fill(f"nothing-{mark}")
    expect(page.get_by_role("heading", name="Nothing is called like that")).to_be_visible()
    assert not complaints


def test_a_workspace_becomes_a_snapshot(page: Page, workspace: Workspace, complaints: list[str]) -> None:
    """The button in a workspace keeps its disk under a name; another workspace begins as that."""
    mark = str(time.time_ns())[-8:]
    workspace.run(f"echo 'low water' > tide-{mark}")
    page.get_by_role("button", name="Snapshot", exact=True).click()
    dialog = page.get_by_role("dialog")
    suggested = dialog.get_by_label("Name")
    expect(suggested).to_have_value(re.compile(r"^shared-\d{6}$"))
    suggested.fill("Not a slug")
    dialog.get_by_role("button", name="Take the snapshot").click()
    assert suggested.evaluate("field => field.validity.patternMismatch")
    suggested.fill(f"shared-{mark}")
    dialog.get_by_role("button", name="Take the snapshot").click()
    expect(page.get_by_text(f"Snapshot shared-{mark} is taken")).to_be_visible()

    page.goto("/snapshots")
    taken = row(page, f"shared-{mark}")
    expect(taken).to_contain_text("of sandbox sbx_")
    expect(taken).to_contain_text("bootable")
    act(page, f"Actions for shared-{mark}", "Lineage")
    expect(dialog.get_by_role("link", name="sbx_")).to_be_visible()
    page.keyboard.press("Escape")
    taken.get_by_role("button", name="Boot a sandbox").click()
    dialog.get_by_label("Name").fill(f"Again {mark}")
    dialog.get_by_role("button", name="Create workspace").click()
    page.wait_for_url("**/sandboxes/sbx_*")
    again = Workspace(page)
    again.wait_for_shell()
    assert "low water" in again.run(f"cat tide-{mark}")
    page.get_by_role("button", name="Snapshot", exact=True).click()
    dialog.get_by_label("Name").fill(f"moment-{mark}")
    dialog.get_by_label("With its memory").check()
    dialog.get_by_role("button", name="Take the snapshot").click()
    expect(page.get_by_text(f"Snapshot moment-{mark} is taken")).to_be_visible()
    page.goto("/snapshots")
    expect(row(page, f"moment-{mark}")).to_contain_text("with memory")
    expect(taken).to_contain_text(f"Again {mark}")
    expect(taken).to_contain_text("boots from it")
    assert not complaints
