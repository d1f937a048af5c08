"""Takes README's picture of a workspace from a real installation: `make screenshot`.

`--pages DIRECTORY` takes every page instead, dark and light, wide and narrow, for whoever changes how they look.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import tarfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, StorageState, sync_playwright

from tests.browser.conftest import PATIENCE, Workspace, create, until
from tests.installation import CHECKOUT, Installation, reachable_directory

CHART = '''\
"""How high the water stands at a gauge, hour by hour."""

from dataclasses import dataclass
from math import pi, sin

PERIOD = 12.42  # hours from one high water to the next


@dataclass(frozen=True)
class Gauge:
    name: str
    range_m: float

    def height(self, hour: float) -> float:
        """Metres above chart datum."""
        return self.range_m / 2 * (1 + sin(2 * pi * hour / PERIOD))


def chart(gauge: Gauge) -> str:
    bars = "▁▂▃▄▅▆▇█"
    tops = (gauge.height(hour / 2) / gauge.range_m for hour in range(50))
    return "".join(bars[round(top * 7)] for top in tops)


if __name__ == "__main__":
    for gauge in (Gauge("Kiel", 0.4), Gauge("Husum", 3.6), Gauge("Saint-Malo", 12.1)):
        print(f"{gauge.name:<11} {chart(gauge)} {gauge.range_m:>5} m")
'''
FILES = {
    "README.md": "# Tide tables\n\nHow high the water stands, hour by hour.\n",
    "pyproject.toml": '[project]\nname = "tides"\nversion = "1.0"\n',
    "data/gauges.csv": "name,range_m\nKiel,0.4\nHusum,3.6\nSaint-Malo,12.1\n",
    "tests/test_chart.py": "from tides.chart import PERIOD\n\n\ndef test_period():\n    assert 12 < PERIOD < 13\n",
    "tides/__init__.py": "",
    "tides/chart.py": CHART,
}
PAGES = {
    "dashboard": "/",
    "workspace": "{workspace}",
    "details": "{workspace}/details",
    "network": "{workspace}/details#network",
    "volumes": "/volumes",
    "snapshots": "/snapshots",
    "secrets": "/secrets",
    "usage": "/usage",
    "members": "/members",
    "tokens": "/tokens",
    "api": "/api-docs",
    "settings": "/organization",
    "password": "/password",
}


def unpacked() -> str:
    """A line for the shell that makes the files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for path, text in FILES.items():
            member = tarfile.TarInfo(path)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return f"echo {base64.b64encode(packed.getvalue()).decode()} | base64 -d | tar xJ -m --no-same-owner"


def work(workspace: Workspace) -> None:
    """A project with a file open, and a terminal in which it has run."""
    workspace.run(unpacked())
    workspace.file("README.md").click()
    for folder in ("tests", "tides"):
        workspace.file(folder).click()
    workspace.file("chart.py").click()
    workspace.editor().get_by_text("range_m: float").click()
    workspace.type("clear")
    workspace.type("uname -srm && python3 tides/chart.py")
    until(lambda: "12.1 m" in workspace.screen(), "the chart was not drawn")
    workspace.wait_for_shell()
    workspace.type("ls -l --color tides && id")
    until(lambda: "gid=" in workspace.screen(), "no end of the list")
    workspace.wait_for_shell()


def furnish(workspace: Workspace) -> None:
    """Something to see on every page: a secret, a token, a member, a stopped sandbox, a refused connection."""
    workspace.run("curl -sm 3 http://10.0.0.1/")
    api = workspace.page.request
    cookies = workspace.page.context.cookies()
    headers = {"X-CSRFToken": next(cookie["value"] for cookie in cookies if cookie["name"] == "atoll_csrf")}

    def post(noun: str, data: object) -> Any:
        answer = api.post(f"/api/v1/{noun}", data=data, headers=headers)
        assert answer.ok, answer.text()
        return answer.json()

    post("secrets", {"name": "TIDES_KEY", "value": "not a key", "hosts": ["api.example.com"]})
    post("members", {"email": "grace@home.example", "role": "viewer"})
    post("tokens", {"name": "Harbour", "scopes": ["read"]})
    harbour = f"sandboxes/{post('sandboxes', {'name': 'Harbour'})['id']}"
    until(lambda: api.get(f"/api/v1/{harbour}").json()["state"] == "running", "Harbour did not start")
    post(f"{harbour}/stop", {})


def every_page(browser: Browser, url: str, state: StorageState, path: str, directory: Path) -> None:
    """One picture of each page, in both themes and two widths."""
    directory.mkdir(parents=True, exist_ok=True)
    for scheme in ("dark", "light"):
        for width in (1440, 390):
            context = browser.new_context(
                base_url=url,
                storage_state=state,
                viewport={"width": width, "height": 900},
                color_scheme="dark" if scheme == "dark" else "light",
            )
            context.set_default_timeout(PATIENCE)
            page = context.new_page()
            for name, place in PAGES.items():
                page.goto(place.format(workspace=path))
                if name == "workspace":
                    Workspace(page).wait_for_shell()
                page.wait_for_timeout(1_000)  # what comes by requests of its own
                page.screenshot(path=directory / f"{name}-{scheme}-{width}.png", full_page=True)
            context.close()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pages", type=Path, metavar="DIRECTORY", help="every page instead of README's picture")
    pages: Path | None = arguments.parse_args().pages
    with reachable_directory() as base, sync_playwright() as playwright:
        installation = Installation(base / "data")
        installation.start()
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        try:
            context = browser.new_context(
                base_url=installation.url,
                viewport={"width": 1440, "height": 900},
                device_scale_factor=1.5,
                color_scheme="dark",
            )
            context.set_default_timeout(PATIENCE)
            page = context.new_page()
            page.goto(installation.command("login-link").strip())
            page.get_by_role("button", name="Sign in to Atoll").click()
            page.get_by_role("heading", name="Sandboxes").wait_for()
            workspace = create(page, "Tide tables")
            work(workspace)
            if pages is None:
                page.screenshot(path=CHECKOUT / "docs" / "images" / "workspace.png")
            else:
                furnish(workspace)
                path = re.sub(r"^https?://[^/]+", "", page.url)
                every_page(browser, installation.url, context.storage_state(), path, pages)
        finally:
            browser.close()
            installation.stop()


if __name__ == "__main__":
    main()
