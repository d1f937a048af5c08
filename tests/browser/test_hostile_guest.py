"""What the page says of a machine that has harmed itself, and that nothing of the person's is lost by it."""

from __future__ import annotations

import base64
import re
import uuid

import pytest
from playwright.sync_api import Page, expect

from tests import hostile
from tests.browser.conftest import Workspace, act, create

pytestmark = pytest.mark.parametrize("place", [pytest.param("real", marks=pytest.mark.live)], indirect=True)


def unique(stem: str) -> str:
    return f"{stem}-{uuid.uuid4().hex[:8]}"


def test_a_full_disk_loses_nothing_that_was_typed(page: Page) -> None:
    """A save that has no room says so, and the text stays in the page; once there is room it is saved."""
    workspace, name = create(page, unique("full")), "note.txt"
    workspace.run(f"echo before > {name}")
    workspace.file(name).click()
    expect(workspace.editor()).to_contain_text("before")
    workspace.run("sudo fallocate -l $(df --output=avail -B1 / | tail -1) /full; sudo dd if=/dev/zero of=/rest bs=4k")
    workspace.run("clear")  # what dd says is what the page must say
    workspace.editor().click()
    page.keyboard.press("Control+End")
    page.keyboard.insert_text("typed " * 2000)
    page.keyboard.press("Control+s")
    expect(page.get_by_text(re.compile("No space left", re.IGNORECASE)).first).to_be_visible()
    expect(workspace.tab(name)).to_contain_text("not saved")
    assert workspace.run(f"wc -c < {name}; head -c 6 {name}").split() == ["7", "before"]
    workspace.run("sudo rm /full /rest")
    workspace.editor().click()
    page.keyboard.press("Control+s")
    expect(workspace.tab(name)).not_to_contain_text("not saved")
    assert "2000" in workspace.run(f"grep -o typed {name} | wc -l")


@pytest.mark.parametrize("program", [hostile.FLOODER, hostile.CLOSER], ids=["floods", "closes"])
def test_a_machine_that_does_not_answer_says_so_and_can_be_started_again(page: Page, program: str) -> None:
    workspace = create(page, unique("mute"))
    coded = base64.b64encode(program.encode()).decode()
    workspace.run(f"echo stays > note.txt; echo {coded} | base64 -d > harm.py; sync")
    workspace.type("sudo python3 harm.py")
    expect(page.get_by_text("The machine does not answer at the moment.")).to_be_visible()
    act(page, "Machine", "Stop")
    page.get_by_role("alertdialog").get_by_role("button", name="Stop").click()
    expect(page.get_by_text(re.compile("Stopped on request by"))).to_be_visible()
    page.get_by_role("button", name="Start it again").click()
    Workspace(page).wait_for_shell()
    assert "stays" in workspace.run("cat note.txt")
