"""A running server for a real browser, with machines in memory and, under `live`, with real ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from tests.installation import CHECKOUT, Installation, free_port, free_ports, reachable_directory

PATIENCE = 120_000.0
"""Milliseconds until something must be seen: a machine under TCG on a busy host is slow, never wrong."""
expect.set_options(timeout=PATIENCE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Browser tests run last: Playwright's own event loop stays in the main thread, where asyncio tests want theirs."""
    here = Path(__file__).parent
    items.sort(key=lambda item: here in item.path.parents)
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)


@dataclass(frozen=True)
class Place:
    """A running server on its data root, and how to get a fresh sign-in link for it."""

    url: str
    data: Path
    login_link: Callable[[], str]


def _in_memory(data: Path) -> Iterator[Place]:
    """A web process whose machines are agents on this host."""
    port = free_port()
    environment = {**os.environ, "ATOLL_DATA": str(data), "ATOLL_QUOTA_CONCURRENT": "50"}
    environment |= {"ATOLL_QUOTA_CREATES_PER_MINUTE": "0", "ATOLL_EXPOSE_PORTS": free_ports()}
    environment["ATOLL_SSH_PORT"] = str(free_port())
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    manage = [sys.executable, "manage.py"]
    built, collected = (CHECKOUT / name / "manifest.json" for name in ("frontend/dist", "staticfiles"))
    # What is as it should be is left alone: another worker's installation may be serving it
    if not collected.exists() or collected.stat().st_mtime < built.stat().st_mtime:
        subprocess.check_call([*manage, "collectstatic", "--noinput", "-v0"], cwd=CHECKOUT, env=environment)
    environment |= {"PYTHONPATH": str(CHECKOUT), "ATOLL_PORT": str(port)}
    with (data / "web.out").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "tests/sdk/fake_server.py", str(port)],
            cwd=CHECKOUT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith("{"), (data / "web.out").read_text()
        first = [json.loads(line)["home_link"]]
        url = f"http://127.0.0.1:{port}"

        def link() -> str:
            if first:
                return f"{url}/login/{first.pop()}"
            return subprocess.check_output([*manage, "login-link"], cwd=CHECKOUT, env=environment, text=True).strip()

        yield Place(url, data, link)
    finally:
        server.terminate()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        server.stdout.close() if server.stdout else None


def _installed(data: Path) -> Iterator[Place]:
    """A whole installation with machines under QEMU."""
    running = Installation(data)
    running.start()
    try:
        yield Place(running.url, data, lambda: running.command("login-link").strip())
    finally:
        running.stop()


@pytest.fixture(scope="session", params=["memory", pytest.param("real", marks=pytest.mark.live)])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """The server under test."""
    with reachable_directory() as base:
        data = base / "data"
        data.mkdir()
        yield from (_in_memory if request.param == "memory" else _installed)(data)


@pytest.fixture(scope="session")
def base_url(place: Place) -> str:
    """What pages' paths are relative to."""
    return place.url


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args: dict[str, Any]) -> dict[str, Any]:
    """Debian's Chromium; the suite runs as root, where Chromium has no sandbox of its own."""
    return {**browser_type_launch_args, "executable_path": "/usr/bin/chromium", "args": ["--no-sandbox"]}


@pytest.fixture(scope="session")
def signed_in(place: Place, browser: Any) -> Any:
    """Cookies of the administrator, got by a one-time link."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(place.login_link())
    page.get_by_role("button", name="Sign in to Atoll").click()
    page.get_by_role("heading", name="Sandboxes").wait_for()
    state = context.storage_state()
    context.close()
    return state


@pytest.fixture
def browser_context_args(browser_context_args: dict[str, Any], signed_in: Any) -> dict[str, Any]:
    """Every page is the administrator's unless a test makes a context of its own."""
    return {
        **browser_context_args,
        "storage_state": signed_in,
        "viewport": {"width": 1280, "height": 800},
        "color_scheme": "dark",
    }


@pytest.fixture
def context(context: BrowserContext) -> BrowserContext:
    """With generous limits."""
    context.set_default_timeout(PATIENCE)
    return context


@pytest.fixture
def complaints(page: Page) -> list[str]:
    """What the page's console said of errors; a refused script or style is among them."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    return found


class Workspace:
    """The IDE page of one machine, as a person uses it."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def wait_for_shell(self) -> None:
        """Until the shell that is shown has a prompt and takes keys."""
        self.page.locator('[data-area="terminal"][data-status="attached"]').wait_for()
        until(lambda: re.search(r"[$#]\s*$", self.screen().rstrip("\n")) is not None, "the shell has no prompt")

    def screen(self) -> str:
        """The text on the terminal's screen."""
        return self.page.locator('[data-area="terminal"] .xterm-rows').inner_text().replace("\u00a0", " ")

    def type(self, line: str) -> None:
        """Type a line into the terminal."""
        self.page.keyboard.press("Alt+3")
        until(lambda: bool(self.page.evaluate("!!document.activeElement.closest('[data-area=terminal]')")), "no focus")
        self.page.keyboard.insert_text(line)
        self.page.keyboard.press("Enter")

    def run(self, command: str) -> str:
        """What the command prints; its end is told by a mark that its own line does not contain."""
        mark = f"done-{time.monotonic_ns()}"
        self.type(f"clear; {command}; echo {mark[:4]}''{mark[4:]}")
        until(lambda: mark in self.screen(), f"no end of {command!r}")
        return self.screen().split(mark)[0]

    def file(self, name: str) -> Locator:
        """A row of the tree."""
        return self.page.locator(f'[role="treeitem"][data-path$="/{name}"]')

    def tab(self, name: str) -> Locator:
        """A tab of the editor."""
        return self.page.get_by_role("tablist", name="Open files").get_by_role("tab", name=name)

    def editor(self) -> Locator:
        """The text being edited."""
        return self.page.locator(".cm-content").first


def until(condition: Callable[[], bool], what: str) -> None:
    """Ask again until it is so."""
    deadline = time.monotonic() + PATIENCE / 1000
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def create(page: Page, name: str) -> Workspace:
    """A workspace of one's own, made by the dashboard's dialog, with its shell there."""
    page.goto("/")
    page.get_by_role("button", name="New workspace").first.click()
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_role("button", name="Create workspace").click()
    page.wait_for_url("**/sandboxes/sbx_*")
    made = Workspace(page)
    made.wait_for_shell()
    return made


def act(page: Page, menu: str, choice: str) -> None:
    """Choose from the menu of a sandbox's actions: `Machine` in a workspace, `Actions for …` elsewhere."""
    page.get_by_role("button", name=menu, exact=True).click()
    page.get_by_role("menuitem", name=choice).click()


@pytest.fixture(scope="session")
def machine(place: Place, browser: Any, signed_in: Any) -> str:
    """Path of a workspace that tests share, made by the page's own dialog."""
    context = browser.new_context(base_url=place.url, storage_state=signed_in)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    create(page, "Shared")
    path = str(page.evaluate("location.pathname"))
    context.close()
    return path


@pytest.fixture
def workspace(page: Page, machine: str) -> Workspace:
    """The shared machine's page with a shell of this test's own."""
    page.goto(machine)
    opened = Workspace(page)
    opened.wait_for_shell()
    return opened
