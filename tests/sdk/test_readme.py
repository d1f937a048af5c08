"""The README examples of both SDKs that need no network, as published, on real machines."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import pytest

from tests.sdk.conftest import Server
from tests.sdk.test_javascript import HERE, modules, node

__all__ = ["modules"]
pytestmark = [
    pytest.mark.sdk,
    pytest.mark.live,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def environment(real_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    for name, value in real_server.client_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return real_server


def python_example(heading: str) -> str:
    """The code block below a heading of the Python SDK's README."""
    text = str(metadata("deno-sandbox").get_payload())  # type: ignore[attr-defined]
    found = re.search(rf"^#+ {re.escape(heading)}\n+```py\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found is not None, heading
    return found[1]


def run_python(code: str) -> str:
    """What the example prints, run as a program of its own: it writes to its standard output past `sys.stdout`."""
    start = "from deno_sandbox import DenoDeploy\nsdk = DenoDeploy()\n"
    return subprocess.check_output([sys.executable, "-c", start + code], text=True, timeout=200)


@pytest.mark.parametrize("heading", ["Synchronous API", "Asynchronous API"])
def test_quick_start(environment: Server, heading: str) -> None:
    """Create, spawn, write, read."""
    assert "Hello, World!" in run_python(python_example(heading))


def test_python_files(environment: Server) -> None:
    """Directories, files, walk and glob."""
    printed = run_python(python_example("Filesystem Operations"))
    assert "config.json - is_file: True" in printed
    assert "/app/data/binary.bin" in printed


def test_python_upload(environment: Server, tmp_path: Path) -> None:
    """The example up to its download, which no server can serve: the upload, and the build."""
    project = tmp_path / "local" / "project"
    project.mkdir(parents=True)
    (project / "package.json").write_text('{"scripts": {"build": "mkdir dist && echo built > dist/out.txt"}}')
    code = python_example("Upload and Download Files")
    lines = [line for line in code.splitlines() if "fs.download" not in line and "# Download" not in line]
    lines.append('    print(sb.fs.read_text_file("/app/project/dist/out.txt"))')
    assert "built" in run_python("\n".join(lines))


def javascript_examples() -> dict[str, str]:
    """Code blocks of the JavaScript SDK's README by heading; `await using` and types are taken off for Node 20."""
    readme = HERE / "node_modules" / "@deno" / "sandbox" / "README.md"
    if not readme.exists():
        return {}
    found: dict[str, str] = {}
    for heading, body in re.findall(
        r"^#{2,3} ([^\n]+)\n(.*?)(?=^#{2,3} )", readme.read_text(), re.MULTILINE | re.DOTALL
    ):
        for number, code in enumerate(re.findall(r"```(?:ts|js)\n(.*?)```", body, re.DOTALL)):
            code = re.sub(r"await using sandbox = ", "const sandbox = ", code)
            code = re.sub(r"\.json<[^>]*>\(", ".json(", code)
            code = re.sub(r"(\w)!([.)])", r"\1\2", code)
            closing = "" if "sandbox.close()" in code else "\nawait sandbox.close();\n"
            # It removes three files that it never made.
            code = code.replace("await sandbox.sh`rm", "await sandbox.sh`touch ${files}`;\nawait sandbox.sh`rm")
            found[f"{heading} {number}"] = code + closing
    return found


NO_NETWORK = {
    "Quick Start 0": "",
    "Spawn a subprocess, and get buffered output 0": "/home/app",
    "Template literal commands with variable interpolation 0": "42",
    "Error handling with noThrow() 0": "Exit code: 1",
    "Error handling with custom error class 0": "Exit code: 42",
    "Set environment variables 0": "API_KEY: secret-key-123",
    "Stream command output to local file 0": "done:",
    "Upload local files or directories 0": "",
    "Control sandbox timeout 0": "",
    "Control sandbox timeout 1": "",
    "Configure sandbox memory 0": "",
}


@pytest.mark.parametrize("name", NO_NETWORK)
def test_javascript(environment: Server, modules: Path, tmp_path: Path, name: str) -> None:
    """Each runs to its end and prints what it says it prints."""
    (tmp_path / "node_modules").symlink_to(HERE / "node_modules")
    (tmp_path / "README.md").write_text("# here\n")
    (tmp_path / "my-project").mkdir()
    (tmp_path / "my-project" / "main.js").write_text("1\n")
    (tmp_path / "example.mjs").write_text(javascript_examples()[name])
    assert NO_NETWORK[name] in node(environment, "example.mjs", cwd=tmp_path)
