"""The workspace on a machine: terminals, files, editing, uploads, and all of it by keyboard."""

from __future__ import annotations

import os
import re
import signal
import uuid

import pytest
from playwright.sync_api import Locator, Page, WebSocketRoute, expect

from tests.browser.conftest import Place, Workspace, act, create, until
from tests.installation import processes

DROP = """([name, sizes]) => {
  const transfer = new DataTransfer();
  for (const [index, size] of sizes.entries())
    transfer.items.add(new File([new Uint8Array(size).fill(65 + index)], `${name}-${index}.txt`));
  return transfer;
}"""


def unique(stem: str) -> str:
    return f"{stem}-{uuid.uuid4().hex[:8]}"


def colour(element: Locator) -> str:
    return str(element.evaluate("element => getComputedStyle(element).color"))


def test_a_reload_comes_back_to_the_same_shell_with_its_screen(workspace: Workspace, complaints: list[str]) -> None:
    """Variables, output and the terminal itself survive; no second shell is started."""
    word = unique("kept")
    workspace.run(f"KEPT={word}")
    terminal = workspace.page.locator('[data-area="terminal"]').get_attribute("data-terminal")
    workspace.type("echo on-the-screen-$KEPT")
    until(lambda: f"on-the-screen-{word}" in workspace.screen(), "the command did not run")

    workspace.page.reload()
    workspace.wait_for_shell()
    assert f"on-the-screen-{word}" in workspace.screen()
    assert workspace.page.locator('[data-area="terminal"]').get_attribute("data-terminal") == terminal
    assert word in workspace.run("echo $KEPT")
    assert complaints == []


def test_a_dropped_connection_is_taken_up_where_it_was(page: Page, machine: str) -> None:
    """Output made while there was no connection is there afterwards, once."""
    lines: list[WebSocketRoute] = []

    def pass_on(line: WebSocketRoute) -> None:
        line.connect_to_server()
        lines.append(line)

    page.route_web_socket(re.compile("/terminal$"), pass_on)
    page.goto(machine)
    workspace = Workspace(page)
    workspace.wait_for_shell()
    word = unique("once")
    workspace.type(f"clear; sleep 1; echo {word[:3]}''{word[3:]}")
    before = len(lines)
    lines[-1].close(code=4999, reason="a test")
    # Asking the page is what lets Playwright hear of the new connection.
    until(lambda: page.evaluate("0") == 0 and len(lines) > before, "no new connection")
    until(lambda: word in workspace.screen(), "what came meanwhile is missing")
    assert workspace.screen().count(word) == 1
    assert workspace.run("echo alive").count("alive") >= 1


@pytest.mark.parametrize("place", [pytest.param("real", marks=pytest.mark.live)], indirect=True)
def test_terminals_come_back_after_web_was_killed(place: Place, workspace: Workspace) -> None:
    """kill -9 of web: the open page finds the same shell again, with what it printed meanwhile, once."""
    word = unique("meanwhile")
    workspace.run(f"KEPT={word}")
    terminal = workspace.page.locator('[data-area="terminal"]').get_attribute("data-terminal")
    workspace.type(f"clear; sleep 3; echo {word[:3]}''{word[3:]}")
    web = processes(place.data, "manage.py web")
    assert web
    for pid in web:
        os.kill(pid, signal.SIGKILL)
    workspace.page.locator('[data-area="terminal"]:not([data-status="attached"])').wait_for()
    until(lambda: word in workspace.screen(), "the terminal did not come back")
    assert workspace.screen().count(word) == 1
    assert workspace.page.locator('[data-area="terminal"]').get_attribute("data-terminal") == terminal
    assert word in workspace.run("echo $KEPT")
    assert not set(web) & set(processes(place.data, "manage.py web"))


def test_terminals_have_colours_wide_characters_and_the_page_s_size(workspace: Workspace) -> None:
    shown = workspace.run("printf '\\e[31mred\\e[0m größe 🌊 漢字\\n'; tput cols")
    assert "red größe 🌊 漢字" in shown
    assert workspace.page.locator('[data-area="terminal"] .xterm-fg-1', has_text="red").count() >= 1
    columns = re.findall(r"^(\d+)\s*$", shown, re.MULTILINE)[-1]
    workspace.page.set_viewport_size({"width": 1000, "height": 700})
    until(
        lambda: int(re.findall(r"^(\d+)\s*$", workspace.run("tput cols"), re.MULTILINE)[-1]) < int(columns),
        "the terminal did not follow the window",
    )


def test_it_is_said_how_the_network_is_reached(workspace: Workspace) -> None:
    """Nobody should have to find out by a program that fails."""
    expect(workspace.page.get_by_text("Network by gate")).to_be_visible()


def test_a_second_terminal_is_another_shell(workspace: Workspace) -> None:
    page = workspace.page
    workspace.run("WHERE=first")
    page.keyboard.press("Alt+Shift+T")
    expect(page.get_by_role("tablist", name="Terminals").get_by_role("tab")).to_have_count(2)
    workspace.wait_for_shell()
    assert "none" in workspace.run("echo ${WHERE:-none}")
    page.keyboard.press("Alt+Shift+N")
    until(lambda: "first" in workspace.run("echo $WHERE"), "the first shell is gone")
    page.keyboard.press("Alt+Shift+N")
    page.keyboard.press("Alt+Shift+W")
    page.get_by_role("alertdialog").get_by_role("button", name="End it").click()
    expect(page.get_by_role("tablist", name="Terminals").get_by_role("tab")).to_have_count(1)


def test_a_large_output_arrives_whole(workspace: Workspace) -> None:
    """Forty megabytes pass without loss of the end, and the page stays usable."""
    assert "last line" in workspace.run("head -c 40000000 /dev/zero | tr '\\0' 'x' | fold -w 200; echo; echo last line")


@pytest.mark.parametrize("key", [None, "Shift+PageUp"], ids=["wheel", "keys"])
def test_lines_that_left_the_screen_are_scrolled_back_to(workspace: Workspace, key: str | None) -> None:
    page = workspace.page
    assert "line-300." in workspace.run("seq -f line-%g. 300")
    assert "line-1." not in workspace.screen()
    page.locator('[data-area="terminal"] .xterm-screen').hover()

    def goes_back() -> bool:
        if key:
            page.keyboard.press(key)
        else:
            page.mouse.wheel(0, -1_000)
        return "line-1." in workspace.screen()

    until(goes_back, "the first line does not come back")


def test_a_file_is_edited_marked_and_saved(workspace: Workspace, complaints: list[str]) -> None:
    page, name = workspace.page, f"{unique('edit')}.py"
    workspace.run(f"echo 'x = 1; assert x' > {name}")
    workspace.file(name).click()
    expect(workspace.editor()).to_contain_text("x = 1")
    number, keyword = (workspace.editor().get_by_text(token, exact=True) for token in ("1", "assert"))
    until(lambda: len({colour(number), colour(keyword), colour(workspace.editor())}) == 3, "no highlighting")
    page.keyboard.press("Control+End")
    page.keyboard.type("y = 2")
    expect(workspace.tab(name)).to_contain_text("not saved")
    page.keyboard.press("Control+s")
    expect(workspace.tab(name)).not_to_contain_text("not saved")
    assert "y = 2" in workspace.run(f"cat {name}")
    assert complaints == []


def test_a_file_is_saved_where_no_other_can_be_made(workspace: Workspace) -> None:
    """In a directory that takes no new file it is written over, and keeps its mode."""
    page, name = workspace.page, f"{unique('shut')}.txt"
    workspace.run(
        f"mkdir {name}.d; echo one > {name}.d/f; chmod 640 {name}.d/f; ln -s {name}.d/f {name}; chmod 555 {name}.d"
    )
    workspace.file(name).click()
    expect(workspace.editor()).to_contain_text("one")
    page.keyboard.press("Control+End")
    page.keyboard.type("two")
    page.keyboard.press("Control+s")
    expect(workspace.tab(name)).not_to_contain_text("not saved")
    said = workspace.run(f"cat {name}.d/f; ls {name}.d; stat -c %a:%s {name}.d/f")
    assert re.search(r"one\s+two\s*f\s+640:7", said)


def test_mixed_line_ends_are_said_and_kept(workspace: Workspace) -> None:
    """A file with all three kinds is saved with the one change that was made; what is pasted brings no other kind."""
    page, name = workspace.page, f"{unique('mixed')}.txt"
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    workspace.run(f"printf 'a\\r\\nb\\nc\\rd' > {name}")
    workspace.file(name).click()
    expect(page.get_by_role("contentinfo", name="Status")).to_contain_text("Mixed line ends")
    workspace.editor().click()
    page.keyboard.press("Control+End")
    page.evaluate("navigator.clipboard.writeText('e\\r\\nf')")
    page.keyboard.press("Control+v")
    page.keyboard.press("Control+s")
    expect(workspace.tab(name)).not_to_contain_text("not saved")
    assert "61 0d 0a 62 0a 63 0d 64 65 0a 66" in workspace.run(f"od -An -tx1 {name}")


def test_a_change_underneath_is_taken_in_or_asked_about(workspace: Workspace) -> None:
    page, name = workspace.page, f"{unique('under')}.txt"
    workspace.run(f"echo one > {name}")
    workspace.file(name).click()
    expect(workspace.editor()).to_contain_text("one")
    workspace.run(f"echo two > {name}")
    expect(workspace.editor()).to_contain_text("two")

    workspace.editor().click()
    page.keyboard.press("Control+End")
    page.keyboard.type("mine")
    workspace.run(f"echo three > {name}")
    bar = page.get_by_role("alert").filter(has_text="changed on the machine")
    expect(bar).to_be_visible()
    workspace.editor().click()
    page.keyboard.press("Control+s")
    assert "three" in workspace.run(f"cat {name}")
    bar.get_by_role("button", name="Compare").click()
    expect(page.get_by_text("On the machine's disk now")).to_be_visible()
    page.get_by_role("button", name="Save the right side").click()
    expect(bar).to_have_count(0)
    until(lambda: "mine" in workspace.run(f"cat {name}"), "mine was not saved")


def test_large_and_binary_files_are_offered_for_download(workspace: Workspace) -> None:
    page, name = workspace.page, unique("big")
    workspace.run(f"head -c 5000001 /dev/zero | tr '\\0' x > {name}.txt; printf 'a\\0b' > {name}.bin")
    workspace.file(f"{name}.txt").click()
    expect(page.get_by_text("only files up to 5 MB are opened as text")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download", exact=True).click()
    assert download.value.path().stat().st_size == 5_000_001
    workspace.file(f"{name}.bin").click()
    expect(page.get_by_text("This is no text")).to_be_visible()


def test_files_are_uploaded_by_dropping_them(workspace: Workspace) -> None:
    page, name = workspace.page, unique("drop")
    workspace.run(f"mkdir {name}")
    target = workspace.file(name)
    target.wait_for()
    transfer = page.evaluate_handle(DROP, [name, [10, 1_500_000, 0]])
    target.dispatch_event("dragover", {"dataTransfer": transfer})
    target.dispatch_event("drop", {"dataTransfer": transfer})
    expect(page.locator('[data-upload="done"]')).to_be_visible()
    found = workspace.run(f"wc -c {name}/*; tail -c 3 {name}/{name}-1.txt")
    assert re.search(rf"1500000 {name}/{name}-1.txt", found)
    assert re.search(rf"\b0 {name}/{name}-2.txt", found)
    assert "BBB" in found

    target.dispatch_event("drop", {"dataTransfer": page.evaluate_handle(DROP, [name, [10]])})
    expect(page.get_by_role("alertdialog")).to_contain_text("are overwritten")
    page.get_by_role("alertdialog").get_by_role("button", name="Cancel").click()


def test_an_upload_can_be_cancelled_and_leaves_nothing(workspace: Workspace) -> None:
    page, name = workspace.page, unique("cancel")
    workspace.run(f"mkdir {name}")
    target = workspace.file(name)
    target.wait_for()
    target.dispatch_event("drop", {"dataTransfer": page.evaluate_handle(DROP, [name, [200_000_000]])})
    progress = page.get_by_role("progressbar", name=re.compile(name))
    until(lambda: 0 < progress.evaluate("bar => bar.position") < 1, "no progress was seen")
    page.get_by_role("button", name=re.compile("Cancel the upload")).click()
    expect(page.locator('[data-upload="cancelled"]')).to_be_visible()
    assert "left=0" in workspace.run(f"echo left=$(ls -A {name} | wc -l)")


def test_everything_is_reached_by_keyboard(workspace: Workspace) -> None:
    """A file is made, written, saved, renamed and deleted without the mouse."""
    page, name = workspace.page, unique("keys")
    page.keyboard.press("F1")
    page.keyboard.type("new file")
    page.keyboard.press("Enter")
    field = page.get_by_label("Name of the new file")
    expect(field).to_be_focused()
    page.keyboard.type(f"{name}.md")
    page.keyboard.press("Enter")
    expect(workspace.tab(f"{name}.md")).to_be_visible()
    expect(workspace.editor()).to_be_focused()
    page.keyboard.type("# By hand")
    page.keyboard.press("Control+s")
    expect(workspace.tab(f"{name}.md")).not_to_contain_text("not saved")

    page.keyboard.press("Alt+1")
    expect(page.get_by_role("tree")).to_be_focused()
    page.keyboard.press("F2")
    expect(page.get_by_label(re.compile("New name of"))).to_be_focused()
    page.keyboard.press("Control+a")
    page.keyboard.type(f"{name}.txt")
    page.keyboard.press("Enter")
    expect(workspace.file(f"{name}.txt")).to_be_visible()
    expect(workspace.tab(f"{name}.txt")).to_be_visible()

    page.keyboard.press("Alt+1")
    page.keyboard.press("Delete")
    expect(page.get_by_role("alertdialog")).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(workspace.file(f"{name}.txt")).to_have_count(0)

    page.keyboard.press("F6")
    page.keyboard.press("Shift+F1")
    expect(page.get_by_role("dialog")).to_contain_text("Keyboard shortcuts")
    page.keyboard.press("Escape")


def test_closing_with_unsaved_changes_asks(workspace: Workspace) -> None:
    page, name = workspace.page, f"{unique('close')}.txt"
    workspace.run(f"echo one > {name}")
    workspace.file(name).click()
    workspace.editor().click()
    page.keyboard.type("unsaved ")
    page.keyboard.press("Alt+w")
    question = page.get_by_role("alertdialog")
    expect(question).to_contain_text(f"Save {name}?")
    question.get_by_role("button", name="Don't save").click()
    expect(workspace.tab(name)).to_have_count(0)
    assert "unsaved" not in workspace.run(f"cat {name}")


def test_a_stopped_machine_says_why_and_starts_again(page: Page) -> None:
    workspace = create(page, unique("stops"))
    workspace.run("echo stays > note.txt")
    act(page, "Machine", "Stop")
    page.get_by_role("alertdialog").get_by_role("button", name="Stop").click()
    expect(page.get_by_text(re.compile("Stopped on request by"))).to_be_visible()
    page.get_by_role("button", name="Start it again").click()
    workspace.wait_for_shell()
    assert "stays" in workspace.run("cat note.txt")


def test_text_goes_to_the_clipboard_and_back(workspace: Workspace) -> None:
    """What is selected is copied and pasted by keys; find marks what it finds."""
    page, word = workspace.page, unique("copied")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    workspace.run(f"echo; echo {word[:3]}''{word[3:]}")
    # The last row with it: the first is the line that was typed.
    box = page.locator('[data-area="terminal"] .xterm-rows > div', has_text=word).last.bounding_box()
    assert box is not None
    page.evaluate("navigator.clipboard.writeText('before')")
    page.mouse.dblclick(box["x"] + 12, box["y"] + 6)
    page.keyboard.press("Control+Shift+C")
    copied = "navigator.clipboard.readText().then((text) => text || 'nothing')"
    until(lambda: page.evaluate(copied) in word, "nothing was copied")
    page.evaluate("navigator.clipboard.writeText('echo pasted-$((6 * 7))')")
    page.keyboard.press("Control+Shift+V")
    page.keyboard.press("Enter")
    until(lambda: "pasted-42" in workspace.screen(), "nothing was pasted")

    page.keyboard.press("Control+Shift+F")
    page.get_by_label("Find in the terminal").fill("pasted-42")
    page.keyboard.press("Enter")
    page.locator(".xterm-find-result-decoration").first.wait_for(state="attached")
    page.keyboard.press("Escape")


def test_a_program_may_fill_the_clipboard_and_never_read_it(workspace: Workspace) -> None:
    """OSC 52: writing works, asking is answered with nothing of it."""
    page = workspace.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    workspace.run("printf '\\e]52;c;%s\\a' $(printf from-the-machine | base64)")
    until(lambda: page.evaluate("navigator.clipboard.readText()") == "from-the-machine", "nothing was written")
    page.evaluate("navigator.clipboard.writeText('a secret of mine')")
    shown = workspace.run("printf '\\e]52;c;?\\a'; IFS= read -rs -t 3 -d '' answer; echo \"answer:$answer\" | cat -v")
    assert "answer:" in shown
    assert "YSBzZWNyZXQgb2YgbWluZQ" not in shown
