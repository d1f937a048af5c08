"""What the commands of an installation say and do, as far as that needs no machine."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import load_command_class
from django.core.management.base import BaseCommand

from ide.env import Env
from ide.installation import banner, holder, refused, running

CHECKOUT = Path(__file__).resolve().parents[2]
PREPARES = """
import time
from ide.env import env
from ide.installation import claimed
with claimed(env()):
    print("claimed", flush=True)
    time.sleep(60)
"""


def down(data: Path) -> str:
    argv = [sys.executable, "manage.py", "down"]
    environment = {**os.environ, "ATOLL_DATA": str(data)}
    return subprocess.run(argv, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=True).stdout  # noqa: TID251


def test_down_stops_what_is_still_being_prepared(tmp_path: Path) -> None:
    """While `up` builds the image there is no up.json, or that of one that was killed: the lock says who it is."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "up.json").write_text(json.dumps({"pid": 1, "url": "http://x", "token": "t"}))
    environment = {**os.environ, "ATOLL_DATA": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", PREPARES],
        cwd=CHECKOUT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        env = Env(ATOLL_DATA=tmp_path)
        assert holder(env) == process.pid
        assert running(env) is None
        assert down(tmp_path) == "stopped.\n"
        assert "KeyboardInterrupt" in process.communicate(timeout=10)[1]
    assert down(tmp_path) == "Atoll does not run here.\n"


@pytest.mark.parametrize("command", ["login-link", "limits"])
@pytest.mark.parametrize(("owner", "changes"), [("atoll", True), ("root", False)])
def test_root_does_not_open_the_service_users_database(
    command: str, owner: str, changes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What root calls by hand becomes the service user where the database is his, before anything is opened."""
    (tmp_path / "db").mkdir()
    executed: list[list[str]] = []
    ran: list[list[str]] = []
    monkeypatch.setattr("ide.management.as_service.env", lambda: Env(ATOLL_DATA=tmp_path))
    monkeypatch.setattr(Path, "owner", lambda path: owner)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chdir", lambda place: None)
    monkeypatch.setattr(os, "execv", lambda program, argv: executed.append(argv))
    monkeypatch.setattr(BaseCommand, "run_from_argv", lambda self, argv: ran.append(argv))
    load_command_class("ide", command).run_from_argv(["manage.py", command, "home"])
    if changes:
        assert executed[0][-4:] == [sys.executable, "manage.py", command, "home"]
        assert "atoll" in executed[0]
    else:
        assert (executed, ran) == ([], [["manage.py", command, "home"]])


VENV = """#!/bin/sh
[ "$1 $2" = "-m venv" ] || exit 1
mkdir -p "$3/bin"
printf '#!/bin/sh\n[ "$1 $3" = "install deno-sandbox" ]' >"$3/bin/pip"
printf '#!/bin/sh\necho "$DENO_SANDBOX_ENDPOINT $DENO_DEPLOY_TOKEN"; cat' >"$3/bin/python"
chmod +x "$3/bin/pip" "$3/bin/python"
"""


def test_what_is_printed_can_be_pasted(tmp_path: Path) -> None:
    """A shell takes the snippet to its end, and Python what the snippet feeds it."""
    env = Env(ATOLL_PORT=9000)
    said = banner(env, {"link": "http://x/login/y", "token": "ddo_secret"}, 1.0)
    helps = (
        "login-link",
        f"logs {env.data / 'logs'}",
        "make disk",
        "ssh -L 9000:",
        "ATOLL_BIND",
        "ATOLL_ALLOWED_HOSTS",
    )
    assert [word for word in helps if word not in said] == []
    snippet = re.search(r"\n\n(export .*?)\n\n  Data", said, re.DOTALL)
    assert snippet is not None
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python3").write_text(VENV)
    (programs / "python3").chmod(0o755)
    script = f"{snippet[1]}\necho behind it\n"
    path = {"PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run(  # noqa: TID251
        ["sh", "-e"], input=script, cwd=tmp_path, env=path, capture_output=True, text=True, check=True
    )
    first, *code, last = done.stdout.splitlines()
    assert (first, last, done.stderr) == ("http://127.0.0.1:9000 ddo_secret", "behind it", "")
    compile("\n".join(code), "snippet", "exec")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (errno.ENOSPC, "No space left on device: /data/x: make room, or set ATOLL_DATA to another disk"),
        (errno.EDQUOT, "Disk quota exceeded: /data/x: make room, or set ATOLL_DATA to another disk"),
        (errno.EROFS, "Read-only file system: /data/x: mount it writable, or set ATOLL_DATA to another disk"),
        (errno.ENOTDIR, "Not a directory: /data/x"),
        (errno.EADDRNOTAVAIL, "Cannot assign requested address: /data/x"),
    ],
)
def test_what_the_host_refuses_is_called_by_its_name(code: int, says: str) -> None:
    """A disk is blamed only where it is one."""
    assert refused(OSError(code, os.strerror(code), "/data/x"), Path("/data")) == says
