"""The command line as its users run it: a program of its own against a running server."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.installation import CHECKOUT
from tests.sdk.conftest import Server

pytestmark = pytest.mark.sdk


class Cli:
    """`atoll` with a home directory of its own."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(CHECKOUT),
            "XDG_CONFIG_HOME": str(folder),
            "NO_PROXY": "127.0.0.1,localhost",
            **settings,
        }

    def start(self, *arguments: str, **pipes: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ide.cli", *arguments]
        return subprocess.Popen(command, env=self.environment, **pipes)

    def run(
        self, *arguments: str, status: int = 0, given: bytes | None = b"", timeout: float = 240
    ) -> tuple[bytes, bytes]:
        """What it prints to either stream, once it has ended with that status."""
        pipe = subprocess.PIPE
        with self.start(*arguments, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            try:
                out, err = process.communicate(given, timeout=timeout)
            finally:
                process.kill()
        assert process.returncode == status, (arguments, process.returncode, out[-2000:], err[-4000:])
        return out, err

    def line(self, *arguments: str) -> str:
        return self.run(*arguments)[0].decode().strip()

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json")[0])


@pytest.fixture
def cli(server: Server, tmp_path: Path) -> Cli:
    return Cli(tmp_path, ATOLL_URL=server.url, ATOLL_TOKEN=server.tokens["home"])


@pytest.fixture(scope="module")
def sandbox(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A sandbox for the tests of this module; each uses names of its own."""
    cli = Cli(tmp_path_factory.mktemp("cli"), ATOLL_URL=server.url, ATOLL_TOKEN=server.tokens["home"])
    made = cli.line("create", "--name", "of-the-module", "--timeout", "20m", "-e", "GREETING=hello", "--label", "a=b")
    yield made
    cli.run("kill", made)


def test_a_login_by_its_code(fake_server: Server, tmp_path: Path) -> None:
    """One confirms the code in a browser, and the program goes on with a token that it keeps for itself."""
    cli = Cli(tmp_path)
    process = cli.start("login", fake_server.url, "--no-browser", stderr=subprocess.PIPE)
    assert process.stderr is not None
    with process, process.stderr:
        shown = process.stderr.readline().decode()
        found = re.search(r"Open (\S+) and confirm this code: (\S+)", shown)
        assert found, shown
        with httpx.Client(base_url=fake_server.url, follow_redirects=True, timeout=30) as browser:
            _sign_in(browser, fake_server)
            assert browser.get(found[1], params={"code": found[2]}).status_code == 200
            answer = {"code": found[2], "answer": "allow", "csrfmiddlewaretoken": browser.cookies["atoll_csrf"]}
            assert "is let in" in browser.post("/device", data=answer).text
        assert process.wait(30) == 0
    assert cli.json("whoami")["organization"]["slug"] == "other"
    assert "owner@other.example" in cli.line("whoami")
    assert "NAME" in cli.line("list")
    cli.run("logout")
    assert b"not signed in" in cli.run("list", status=3)[1]


def _sign_in(browser: httpx.Client, server: Server) -> None:
    link = f"/login/{server.tokens['other_link']}"
    browser.get(link)
    signed = browser.post(link, data={"csrfmiddlewaretoken": browser.cookies["atoll_csrf"]})
    assert signed.status_code == 200


def test_a_login_with_a_token(fake_server: Server, tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    cli.run("login", fake_server.url, "--with-token", given=b"ddo_wrong\n", status=3)
    cli.run("login", fake_server.url, "--with-token", given=fake_server.tokens["home"].encode() + b"\n")
    assert cli.json("whoami")["organization"]["slug"] == "home"


def test_nobody_answers(tmp_path: Path) -> None:
    cli = Cli(tmp_path, ATOLL_URL="http://127.0.0.1:9", ATOLL_TOKEN="ddo_x")
    assert b"does not answer" in cli.run("list", status=6)[1]


def test_lists_and_details(cli: Cli, sandbox: str) -> None:
    rows = cli.json("list")
    row = next(row for row in rows if row["id"] == sandbox)
    assert (row["name"], row["state"], row["labels"], row["kind"]) == (
        "of-the-module",
        "running",
        {"a": "b"},
        "sandbox",
    )
    table = cli.line("list").splitlines()
    assert table[0].split()[:4] == ["ID", "NAME", "KIND", "STATE"]
    assert any(line.startswith(sandbox) and "running" in line for line in table)
    assert sandbox in cli.line("list", "-q").splitlines()
    assert cli.json("show", "of-the-module")["id"] == sandbox
    assert "a=b" in cli.line("show", sandbox)
    assert "running" in cli.line("logs", sandbox)


def test_a_life(cli: Cli) -> None:
    """Made, extended, copied, suspended, resumed and ended; what is asked of the ended one is refused with a reason."""
    made = cli.line("create", "--name", "life", "--timeout", "10m")
    before = cli.json("show", made)["stop_at"]
    assert cli.line("extend", made, "20m") > before
    copy = cli.line("fork", made, "--name", "copy")
    assert cli.json("show", copy)["forked_from"] == made
    cli.run("kill", copy)
    assert cli.line("suspend", made) == made
    assert cli.json("show", made)["state"] == "suspended"
    assert cli.line("resume", "life") == made
    assert cli.line("kill", made) == made
    cli.run("suspend", made, status=4)
    assert b"no sandbox" in cli.run("show", "life-of-nobody", status=4)[1]


def test_what_is_typed_wrongly(cli: Cli) -> None:
    assert b"is no time" in cli.run("create", "--timeout", "5", status=2)[1]
    assert b"contradict" in cli.run("create", "--no-net", "--allow-net", "a.example", status=2)[1]
    assert b"memory" in cli.run("create", "--memory", "1", status=1)[1].lower()


def test_exec(cli: Cli, sandbox: str) -> None:
    """The command's streams are the program's, and so is its exit status."""
    assert cli.run("exec", sandbox, "sh", "-c", "echo out; echo err >&2; exit 7", status=7) == (b"out\n", b"err\n")
    assert cli.line(
        "exec", "-w", "/tmp", "-e", "WORD=a b", sandbox, "--", "sh", "-c", 'echo "$PWD $WORD $GREETING"'
    ) == ("/tmp a b hello")
    assert cli.line("exec", sandbox, "echo", "--json", "-t") == "--json -t"
    assert b"nosuchcommand" in cli.run("exec", sandbox, "nosuchcommand", status=127)[1]
    cli.run("exec", sandbox, "sh", "-c", "kill -9 $$", status=137)
    cli.run("exec", "sbx_loc_00000000000000000000", "true", status=125)


def test_exec_pipes(cli: Cli, sandbox: str, tmp_path: Path) -> None:
    """Megabytes go in and come out as they were, from a pipe as from a file."""
    data = os.urandom(3_000_001)
    out, _ = cli.run("exec", sandbox, "cat", given=data)
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()
    (tmp_path / "given").write_bytes(data)
    with (tmp_path / "given").open("rb") as file:
        counting = cli.start("exec", sandbox, "wc", "-c", stdin=file, stdout=subprocess.PIPE)
        with counting:
            assert counting.communicate(timeout=120)[0].strip() == b"3000001"
    # With -n a loop keeps its input
    assert cli.run("exec", "-n", sandbox, "cat", given=b"kept") == (b"", b"")


def test_exec_ends_with_its_reader_and_its_input_may_go_on(cli: Cli, sandbox: str) -> None:
    """As with a local pipe: nobody reads on, the command ends; the command ends, nobody waits for more input."""
    pipe = subprocess.PIPE
    with cli.start("exec", sandbox, "yes", stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe) as endless:
        assert endless.stdout is not None
        assert endless.stdout.read(4) == b"y\ny\n"
        endless.stdout.close()
        assert endless.wait(60) == 141
    with cli.start("exec", sandbox, "head", "-c", "2", stdin=pipe, stdout=pipe) as short:
        assert short.stdin is not None
        assert short.stdout is not None
        short.stdin.write(b"abcd")
        short.stdin.flush()
        assert short.stdout.read() == b"ab"
        assert short.wait(60) == 0


def test_a_signal_reaches_the_command(cli: Cli, sandbox: str) -> None:
    script = "trap 'echo caught; exit 3' INT; echo ready; while :; do sleep 0.1; done"
    pipe = subprocess.PIPE
    with cli.start("exec", sandbox, "sh", "-c", script, stdin=subprocess.DEVNULL, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == b"caught\n"
        assert process.wait(60) == 3


def test_ssh(cli: Cli, sandbox: str) -> None:
    """OpenSSH logs in with what the server gives, and `exec -t` has a terminal."""
    login = json.loads(cli.line("ssh", "--json", sandbox))
    assert set(login) == {"hostname", "username", "port"}
    assert cli.line("ssh", "--print", sandbox).startswith(f"ssh -p {login['port']} ")
    assert cli.line("ssh", sandbox, "-o", "UserKnownHostsFile=/dev/null", "--", "echo", "$((1+1))") == "2"
    out, _ = cli.run("exec", "-t", "-w", "/tmp", sandbox, "sh", "-c", "tty; pwd; exit 4", status=4)
    assert out.split() == [b"not", b"a", b"tty", b"/tmp"] or out.startswith(b"/dev/pts/")


def test_cp(cli: Cli, sandbox: str, tmp_path: Path) -> None:
    """Files, trees and patterns go in, between sandboxes' paths, and out again as they were."""
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    data = os.urandom(2_000_003)
    (tree / "deep" / "ünï code").write_bytes(data)
    (tree / "run").write_text("#!/bin/sh\necho ran\n")
    (tree / "run").chmod(0o755)
    (tree / "link").symlink_to("deep")
    (tree / "out").symlink_to("/etc/hostname")
    cli.run("cp", str(tree), f"{sandbox}:a.b&c")
    assert cli.line("exec", sandbox, "./a.b&c/run") == "ran"
    cli.run("cp", f"{sandbox}:a.b&c", f"{sandbox}:new/place/")
    cli.run("cp", f"{sandbox}:new/place/a.b&c", f"{sandbox}:x|y")
    assert cli.line("exec", sandbox, "readlink", "x|y/link") == "deep"
    # A link that leads out of what is copied is left out, and said
    assert b"left out" in cli.run("cp", f"{sandbox}:x|y", str(tmp_path / "back"), status=1)[1]
    assert (tmp_path / "back" / "deep" / "ünï code").read_bytes() == data
    assert (tmp_path / "back" / "link").readlink() == Path("deep")
    assert os.access(tmp_path / "back" / "run", os.X_OK)
    assert not (tmp_path / "back" / "out").is_symlink()

    for name in ("1.log", "2.log", "3.txt"):
        (tmp_path / name).write_text(name)
    cli.run("cp", str(tmp_path / "*.log"), f"{sandbox}:logs/")
    cli.run("cp", f"{sandbox}:logs/*.log", str(tmp_path / "got") + "/")
    assert sorted(path.name for path in (tmp_path / "got").iterdir()) == ["1.log", "2.log"]
    cli.run("cp", str(tmp_path / "3.txt"), f"{sandbox}:logs/renamed")
    assert cli.line("exec", sandbox, "cat", "logs/renamed") == "3.txt"
    cli.run("cp", f"{sandbox}:logs/none*", str(tmp_path), status=4)
    cli.run("cp", str(tmp_path / "none"), f"{sandbox}:logs", status=4)
    cli.run("cp", str(tmp_path / "3.txt"), f"{sandbox}:/proc/nowhere/x", status=1)
    cli.run("cp", str(tmp_path / "1.log"), str(tmp_path / "2.log"), f"{sandbox}:logs/renamed", status=1)
    cli.run("cp", str(tmp_path / "1.log"), str(tmp_path / "other"), status=2)
    # Whichever end fails, its own reason is told
    cli.run("exec", sandbox, "sh", "-c", "printf x > taken")
    said = cli.run("cp", str(tree), f"{sandbox}:taken/below", status=1)[1]
    assert b"the sandbox" in said
    (tmp_path / "taken").write_text("")
    assert b"taken" in cli.run("cp", f"{sandbox}:x|y", str(tmp_path / "taken" / "below"), status=1)[1]


def test_secrets(cli: Cli, sandbox: str) -> None:
    """A value is read from standard input and seen nowhere again."""
    out, _ = cli.run(
        "secrets", "create", "CLI_KEY", "--host", "api.example.com", "--sandbox", sandbox, given=b"v4lue\n"
    )
    made = out.decode().strip()
    assert cli.run("secrets", "rotate", made, given=b"v4lue2")[0] == b"2\n"
    listed = cli.run("secrets", "list", "--sandbox", sandbox)[0]
    assert b"CLI_KEY" in listed
    assert b"v4lue" not in listed + cli.run("secrets", "list", "--sandbox", sandbox, "--json")[0]
    cli.run("secrets", "revoke", made)
    assert "CLI_KEY" not in cli.line("secrets", "list", "--sandbox", sandbox)
    assert b"no value" in cli.run("secrets", "create", "X", "--host", "a.example", status=1)[1]


def test_places_and_labels_of_secrets(cli: Cli, sandbox: str, server: Server) -> None:
    """As on the page: where in a request it may stand, and which of the organization's sandboxes have it."""
    name = f"CLI_{os.urandom(4).hex().upper()}"
    create = ("secrets", "create", name, "--host", "api.example.com", "--place", "query", "--label", "team=cli")
    if server.kind == "real":
        # The token that `make up` prints may not change what is the organization's
        cli.run(*create, given=b"v4lue", status=5)
        return
    made = cli.run(*create, given=b"v4lue")[0].decode().strip()

    def shown() -> dict[str, Any]:
        return next(row for row in cli.json("secrets", "list") if row["id"] == made)

    assert (shown()["places"], shown()["labels"]) == (["query"], {"team": "cli"})
    (line,) = [line for line in cli.line("secrets", "list").splitlines() if name in line]
    assert "header query" in line
    assert "team=cli" in line
    assert name not in cli.line("secrets", "list", "--sandbox", sandbox)
    cli.run("secrets", "rotate", made, "--host", "b.example.com", "--place", "body", given=b"v4lue2")
    assert (shown()["hosts"], shown()["places"], shown()["labels"]) == (["b.example.com"], ["body"], {"team": "cli"})
    cli.run("secrets", "rotate", made, given=b"v4lue3")
    assert (shown()["hosts"], shown()["places"]) == (["b.example.com"], ["body"])
    cli.run("secrets", "revoke", made)
    assert b"--host" in cli.run("secrets", "create", "X", given=b"x", status=2)[1]
    both = ("--host", "a.example", "--sandbox", sandbox, "--label", "a=b")
    assert b"that sandbox alone" in cli.run("secrets", "create", "X", *both, given=b"x", status=2)[1]


def test_ports(cli: Cli, sandbox: str) -> None:
    address = cli.line("ports", "expose", sandbox, "8123", "--access", "link", "--hours", "1")
    assert address.startswith("https://")
    exposed = cli.json("ports", "list", sandbox)["exposed"]
    made = next(one for one in exposed if one["port"] == 8123)
    assert "8123" in cli.line("ports", "list", sandbox)
    cli.run("ports", "close", sandbox, made["id"])
    assert 8123 not in [one["port"] for one in cli.json("ports", "list", sandbox)["exposed"]]


def test_volumes(cli: Cli) -> None:
    """Made, grown, kept as a snapshot that another one is made of, deleted and brought back."""
    made = cli.line("volumes", "create", "cli-data", "300MB")
    assert cli.line("volumes", "grow", "cli-data", "400MB") == made
    kept = cli.line("volumes", "snapshot", "cli-data", "cli-kept")
    assert kept in cli.line("snapshots", "list")
    copy = cli.line("volumes", "create", "cli-copy", "400MB", "--from", "cli-kept")
    rows = {row["slug"]: row for row in cli.json("volumes", "list", "--search", "cli-")}
    assert rows["cli-data"]["capacity"] == 400_000_000
    assert rows["cli-copy"]["base"]["slug"] == "cli-kept"
    assert cli.line("volumes", "delete", "cli-data") == made
    assert made not in cli.line("volumes", "list")
    assert cli.line("volumes", "restore", made) == made
    for name in (made, copy):
        cli.run("volumes", "delete", name)
    cli.run("snapshots", "delete", "cli-kept")
    cli.run("volumes", "delete", "cli-data", status=4)


def test_a_snapshot_of_a_sandbox(cli: Cli, server: Server) -> None:
    """Of its disk, or with its memory; it goes on, and another one begins with that disk."""
    sandbox = cli.line("create", "--deny-net", "denied.example")
    cli.run("exec", sandbox, "--", "sh", "-c", "echo kept > ~/note; sync")
    disk = cli.line("snapshots", "take", sandbox, "cli-disk")
    cli.line("snapshots", "take", sandbox, "cli-memory", "--memory")
    rows = {row["slug"]: row for row in cli.json("snapshots", "list", "--search", "cli-")}
    assert (rows["cli-disk"]["id"], rows["cli-disk"]["taken_of"]) == (disk, sandbox)
    assert (rows["cli-disk"]["memory_mb"], rows["cli-memory"]["memory_mb"]) == (0, 1280)
    copy = cli.line("create", "--root", "cli-disk")
    assert cli.json("show", copy)["root"] == disk
    if server.kind == "real":
        assert cli.line("exec", copy, "--", "cat", "/home/app/note") == "kept"
    cli.run("kill", sandbox, copy)
    for slug in ("cli-disk", "cli-memory"):
        cli.run("snapshots", "delete", slug)


def test_doctor(cli: Cli, tmp_path: Path) -> None:
    assert "answers" in cli.line("doctor")
    assert b"not signed in" in Cli(tmp_path).run("doctor", status=1)[0]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(cli: Cli, shell: str) -> None:
    assert "_ATOLL_COMPLETE" in cli.line("completion", shell)
