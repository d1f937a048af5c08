"""What is typed and printed on the command line, without a server."""

from __future__ import annotations

import json
import re
import stat
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest

from ide.cli import login, output
from ide.cli.__main__ import atoll
from ide.cli.errors import NotSignedIn, failure_of
from ide.cli.login import Login
from ide.cli.values import Duration, Lifetime, Pair
from tests.installation import CHECKOUT

NAMES = (
    "ATOLL_URL",
    "ATOLL_TOKEN",
    "ATOLL_ORGANIZATION",
    "DENO_DEPLOY_ENDPOINT",
    "DENO_DEPLOY_TOKEN",
    "DENO_DEPLOY_ORG",
)


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No login from the environment, and no file of the person who runs the tests."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("1d", 86_400)])
def test_times(text: str, seconds: int) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "0s", "5", "5w", "-1m", "1.5h", "m"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Duration().convert(text, None, None)


def test_a_lifetime_is_a_time_or_unlimited() -> None:
    assert Lifetime().convert("30m", None, None) == 1800
    assert Lifetime().convert("unlimited", None, None) == "unlimited"
    for text in ("Unlimited", "session", "0s"):
        with pytest.raises(click.BadParameter):
            Lifetime().convert(text, None, None)


def test_pairs() -> None:
    assert Pair().convert("A=b=c", None, None) == ("A", "b=c")
    assert Pair().convert("A=", None, None) == ("A", "")
    for text in ("A", "=b"):
        with pytest.raises(click.BadParameter):
            Pair().convert(text, None, None)


def test_a_login_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    kept = Login("https://one.example", "ddo_secret", "home")
    login.write(kept)
    assert login.path() == tmp_path / "atoll" / "login.json"
    assert stat.S_IMODE(login.path().stat().st_mode) == 0o600
    assert json.loads(login.path().read_text())["token"] == "ddo_secret"
    assert login.read() == Login("https://one.example", "ddo_secret")
    assert login.forget() == kept
    assert not login.path().exists()
    assert login.forget() is None


def test_another_server_never_gets_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server named in the environment gets no token that was given for another one."""
    login.write(Login("https://one.example", "ddo_secret"))
    monkeypatch.setenv("ATOLL_URL", "https://other.example")
    with pytest.raises(NotSignedIn):
        login.read()
    monkeypatch.setenv("ATOLL_TOKEN", "ddo_other")
    assert login.read() == Login("https://other.example", "ddo_other")


def test_a_spoilt_file_is_nobody_signed_in() -> None:
    login.path().parent.mkdir()
    login.path().write_text("{")
    with pytest.raises(NotSignedIn):
        login.read()


def test_tables_and_what_others_wrote(capsys: pytest.CaptureFixture[str]) -> None:
    """Columns are as wide as they have to be, and a name with a terminal's commands in it commands nothing."""
    output.table_print([("a", "long name"), ("bb", "\x1b[2Jx")], ("ID", "NAME"))
    lines = capsys.readouterr().out.splitlines()
    assert [click.unstyle(line) for line in lines] == ["ID  NAME", "a   long name", "bb  �[2Jx"]
    assert "\x1b[2J" not in "".join(lines)


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (None, ""),
        ("2026-11-26T11:59:30Z", "30s"),
        ("2026-11-26T10:00:00Z", "2h"),
        ("2026-11-24T12:00:00Z", "2d"),
        ("2026-11-26T12:05:00Z", "in 5m"),
    ],
)
def test_ago(moment: str | None, text: str) -> None:
    assert output.ago(moment, now=lambda: datetime(2026, 11, 26, 12, tzinfo=UTC)) == text


def commands(group: click.Group, before: str = "") -> list[str]:
    """Every command by its full name."""
    found: list[str] = []
    for name, command in group.commands.items():
        found += commands(command, f"{before}{name} ") if isinstance(command, click.Group) else [before + name]
    return found


def test_every_command_is_documented() -> None:
    """docs/cli.md names each, a group's after the group's name in the same row."""
    rows = [line for line in (CHECKOUT / "docs" / "cli.md").read_text().splitlines() if line.startswith("| `")]
    missing = []
    for name in commands(atoll):
        group, _, last = name.rpartition(" ")
        words = rf"`{group} .*\b{last}\b" if group else rf"`{last}\b"
        if not any(re.search(words, row) for row in rows):
            missing.append(name)
    assert missing == []


def test_statuses() -> None:
    statuses = {http: failure_of(http, "no").status for http in (400, 401, 403, 404, 409, 429, 500)}
    assert statuses == {400: 1, 401: 3, 403: 5, 404: 4, 409: 5, 429: 5, 500: 1}
