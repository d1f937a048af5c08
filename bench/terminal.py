"""The terminal as a page has it: echo, throughput, and what a torrent of output costs each process on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Page, sync_playwright
from websockets.asyncio.client import ClientConnection, connect

from bench.machines import node_of
from bench.report import Number, median, quantile
from tests.installation import Installation, processes
from vm.guest.calls import GuestCall

KEYS = 100  # of each run
RUNS = 5
SIZE = 40_000_000
PATIENCE = 180.0
GROWTH = {"the browser's page": 256, "others": 64}
"""MB by which a process on the way may grow while a terminal is flooded."""

# Stands before the page's own code: notes when a key's bytes leave and when the next bytes arrive.
_PROBE = """
window.bench = { sent: [], got: [], bytes: 0, enough: Infinity, done: () => {} };
// Asking again and again how far it is would cost a good part of what is measured
window.bench.until = (bytes) =>
  new Promise((done) => Object.assign(window.bench, { bytes: 0, enough: bytes, done }));
window.WebSocket = class extends WebSocket {
  constructor(...args) {
    super(...args);
    this.addEventListener("message", (event) => {
      if (typeof event.data === "string") return;
      window.bench.got.push(performance.now());
      window.bench.bytes += event.data.byteLength ?? event.data.size;
      if (window.bench.bytes >= window.bench.enough) window.bench.done();
    });
  }
  send(data) {
    if (typeof data !== "string") window.bench.sent.push(performance.now());
    super.send(data);
  }
};
"""


def terminal(installation: Installation) -> list[Number]:
    """Echo at the page's socket, `cat` of 40 MB in the page beside a node-side client, memory while `yes` runs."""
    headers = {"Authorization": f"Bearer {installation.token}"}
    with (
        httpx.Client(base_url=installation.url, headers=headers, timeout=30) as api,
        contextlib.ExitStack() as stack,
    ):
        playwright = sync_playwright().start()
        sandbox = api.post("/api/v1/sandboxes", json={"name": "bench"}).raise_for_status().json()["id"]
        while api.get(f"/api/v1/sandboxes/{sandbox}").json()["state"] != "running":
            time.sleep(0.2)
        browser = stack.enter_context(_chromium())
        chromium = playwright.chromium.connect_over_cdp(browser)
        page = chromium.contexts[0].pages[0]
        page.set_default_timeout(PATIENCE * 1000)
        page.add_init_script(_PROBE)
        page.goto(installation.command("login-link").strip())
        page.get_by_role("button", name="Sign in to Atoll").click()
        page.get_by_role("heading", name="Sandboxes").wait_for()
        page.goto(f"{installation.url}/sandboxes/{sandbox}")
        page.locator('[data-area="terminal"][data-status="attached"]').wait_for()
        _until(page, lambda: re.search(r"[$#]\s*$", _screen(page).rstrip("\n")) is not None)
        _line(page, f"yes 0123456789abcdef0123456789abcdef0123456789abcde | head -c {SIZE} > /dev/shm/cat")
        _settled(page)
        numbers = [*_echo(page), *_memory(page, installation)]
        # Playwright is sent a copy of every WebSocket frame, which no browser of a user's has to do
        playwright.stop()
        numbers += asyncio.run(_cat(browser, installation))
        api.delete(f"/api/v1/sandboxes/{sandbox}")
    return numbers


def _screen(page: Page) -> str:
    return page.locator('[data-area="terminal"] .xterm-rows').inner_text().replace("\u00a0", " ")


def _line(page: Page, text: str) -> None:
    page.keyboard.press("Alt+3")
    page.keyboard.insert_text(text)
    page.keyboard.press("Enter")


def _until(page: Page, condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, _screen(page)
        page.wait_for_timeout(20)


def _settled(page: Page) -> None:
    """Until the shell is at its prompt again, told by a mark its own line does not contain."""
    mark = f"mark{time.monotonic_ns()}"
    _line(page, f"echo {mark[:4]}''{mark[4:]}")
    _until(page, lambda: mark in _screen(page))


def _echo(page: Page) -> list[Number]:
    """Milliseconds from a key's bytes leaving the page to the first bytes that come back."""
    _line(page, "stty -icanon; cat > /dev/null")
    page.wait_for_timeout(1000)
    runs = [[_key(page) for _ in range(KEYS)] for _ in range(RUNS)]
    page.keyboard.press("Control+C")
    # The interrupt throws away what was typed with it: only a prompt says that it is over
    _until(page, lambda: _screen(page).rstrip().endswith("$"))
    _settled(page)
    return [
        Number("terminal echo, p50", median(median(times) for times in runs), "ms", at_most=20),
        Number("terminal echo, p99", median(quantile(times, 0.99) for times in runs), "ms", at_most=80),
    ]


def _key(page: Page) -> float:
    page.evaluate("bench.sent = []; bench.got = []")
    page.keyboard.press("a")
    _until(page, lambda: page.evaluate("bench.got.length > 0"))
    return float(page.evaluate("bench.got[0] - bench.sent[0]"))


@contextlib.contextmanager
def _chromium() -> Iterator[str]:
    """A browser of its own, by the address at which it is told what to do."""
    with tempfile.TemporaryDirectory(prefix="atoll-bench-") as profile:
        process = subprocess.Popen(
            [
                *("/usr/bin/chromium", "--headless", "--no-sandbox", "--no-first-run", "--window-size=1280,720"),
                *("--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            told = Path(profile) / "DevToolsActivePort"
            until = time.monotonic() + 30
            while not (told.exists() and told.read_text().count("\n")):
                assert time.monotonic() < until, "chromium does not start"
                time.sleep(0.05)
            yield f"http://127.0.0.1:{told.read_text().split()[0]}"
        finally:
            process.terminate()
            process.wait()


class _Tab:
    """The page, told what to do by the DevTools protocol and nothing else."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0

    async def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        await self._connection.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while (answer := json.loads(await self._connection.recv())).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return dict(answer["result"])

    async def evaluate(self, script: str) -> Any:
        answer = await self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        return answer["result"].get("value")

    async def line(self, text: str) -> None:
        await self.ask("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
            await self.ask("Input.dispatchKeyEvent", type=kind, **key)

    async def settled(self) -> None:
        mark = f"mark{time.monotonic_ns()}"
        await self.line(f"echo {mark[:4]}''{mark[4:]}")
        until = time.monotonic() + PATIENCE
        while mark not in await self.evaluate("document.querySelector('[data-area=terminal] .xterm-rows').innerText"):
            assert time.monotonic() < until
            await asyncio.sleep(0.1)


async def _cat(browser: str, installation: Installation) -> list[Number]:
    async with httpx.AsyncClient() as client:
        tabs = (await client.get(f"{browser}/json/list")).json()
    address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
    ours, reference = [], []
    async with connect(address, max_size=None) as connection:
        tab = _Tab(connection)
        for _ in range(RUNS):
            reference.append(await _node_side(installation))
            await tab.evaluate(f"(bench.whole = bench.until({SIZE})) && null")
            began = time.monotonic()
            await tab.line("cat /dev/shm/cat")
            await tab.evaluate("bench.whole")
            ours.append(SIZE / 1e6 / (time.monotonic() - began))
            await tab.settled()
    return [
        Number("cat of 40 MB in the page", median(ours), "MB/s", median(reference), "node-side client", at_least=0.5),
        Number("cat of 40 MB in the page", median(ours), "MB/s", at_least=4),
    ]


async def _node_side(installation: Installation) -> float:
    """MB/s of the same `cat`, read by a client that asks the node for the terminal's stream and draws nothing."""
    node = node_of(installation)
    machine = next(info.machine for info in await node.machine_list() if info.state == "ready")
    async with await GuestCall.begin(
        await node.stream_open(machine), "terminal.open", {"cols": 80, "rows": 24}
    ) as opened:
        identity = (await opened.reply())["ok"]["id"]
    try:
        async with await GuestCall.begin(
            await node.stream_open(machine), "terminal.attach", {"id": identity}, more=True
        ) as attached:
            await attached.reply()
            await attached.read()
            began = time.monotonic()
            await attached.write(b"cat /dev/shm/cat\r")
            got = 0
            while got < SIZE:
                got += len(await attached.read(262_144))
            return SIZE / 1e6 / (time.monotonic() - began)
    finally:
        async with await GuestCall.begin(await node.stream_open(machine), "terminal.close", {"id": identity}) as closed:
            await closed.reply()


def _memory(page: Page, installation: Installation) -> list[Number]:
    """How much memory each process on the way grows by at most, in MB, while `yes` floods the page for ten seconds."""
    watched = {
        name: processes(installation.data, word)
        for name, word in (
            ("web", "manage.py web"),
            ("node", "manage.py node"),
            ("worker", "manage.py worker"),
            ("the machine's QEMU", "qemu-system"),
        )
    }
    watched["the browser's page"] = [pid for pid in _descendants(os.getpid()) if "--type=renderer" in _command(pid)]
    before = {name: _resident(pids) for name, pids in watched.items()}
    _line(page, "timeout 10 yes")
    most = dict(before)
    until = time.monotonic() + 11
    while time.monotonic() < until:
        page.wait_for_timeout(250)
        most = {name: max(most[name], _resident(pids)) for name, pids in watched.items()}
    _settled(page)
    return [
        Number(
            f"memory, {name}: growth while yes floods",
            most[name] - before[name],
            "MB",
            at_most=GROWTH.get(name, GROWTH["others"]),
            note=f"{before[name]:.0f} MB before",
        )
        for name in watched
    ]


def _descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rsplit(") ", 1)[1].split()[1])
            parents.setdefault(parent, []).append(int(path.parent.name))
    found, ahead = [], [pid]
    while ahead:
        children = parents.get(ahead.pop(), [])
        found += children
        ahead += children
    return found


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _resident(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
            total += int(found[1]) if found else 0
    return total / 1000
