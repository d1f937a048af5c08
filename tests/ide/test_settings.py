"""Every setting is read, typed and documented, and a wrong one is refused before anything starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from ide.env import Env

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def test_every_setting_is_documented() -> None:
    """docs/settings.md lists exactly the variables that are read."""
    listed = re.findall(r"^\| `([A-Z_]+)`", DOCUMENT.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(str(field.alias) for field in Env.model_fields.values())


def test_lists_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commas and spaces separate."""
    monkeypatch.setenv("ATOLL_ALLOWED_HOSTS", "a.example, b.example")
    assert Env().allowed_hosts == ("a.example", "b.example")
    assert {"localhost", "127.0.0.1", "a.example", "b.example"} <= set(Env().hosts)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ATOLL_REGION", "eu-1"),
        ("ATOLL_PORT", "70000"),
        ("ATOLL_PORT", "http"),
        ("ATOLL_PUBLIC_URL", "atoll.example.org"),
        ("ATOLL_PUBLIC_URL", "https://atoll.example.org/path"),
        ("ATOLL_QUOTA_CONCURRENT", "-1"),
        ("ATOLL_QUOTA_MEMORY_MIB", "lots"),
        ("ATOLL_MAX_LIFETIME", "-1"),
        ("ATOLL_PRICE_CPU_HOUR", "-0.05"),
        ("ATOLL_PRICE_VOLUME_GIB_MONTH", "NaN"),
        ("ATOLL_CURRENCY", "dollars"),
    ],
)
def test_wrong_values(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A value that cannot be meant stops the process."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        Env()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ATOLL_PORT", "http", "atoll: ATOLL_PORT: "),
        ("DATABASE_URL", "mysql://x", "atoll: DATABASE_URL must begin with"),
        ("ATOLL_DATA", "/proc/nothing", "atoll: nothing can be kept at ATOLL_DATA"),
        ("ATOLL_LIBVIRT_URI", "qemu+ssh://root@other/system", "atoll: ATOLL_LIBVIRT_URI: "),
    ],
)
def test_a_command_with_wrong_settings_says_one_line(tmp_path: Path, name: str, value: str, said: str) -> None:
    environment = {**os.environ, "ATOLL_DATA": str(tmp_path), name: value}
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    done = subprocess.run(  # noqa: TID251 - the test is the runner
        [sys.executable, "manage.py", "client_env"],
        cwd=DOCUMENT.parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == 1


def test_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    """What people are told: the public URL, else something that can be opened."""
    monkeypatch.setenv("ATOLL_BIND", "0.0.0.0")
    monkeypatch.setenv("ATOLL_PORT", "9000")
    assert Env().origin == "http://127.0.0.1:9000"
    monkeypatch.setenv("ATOLL_PUBLIC_URL", "https://atoll.example.org/")
    assert Env().origin == "https://atoll.example.org"
    assert "https://atoll.example.org" in Env().origins


def test_the_address_bound_to_may_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own health check asks the bind address, whatever the public name is; wildcards are no names."""
    monkeypatch.setenv("ATOLL_PUBLIC_URL", "https://atoll.example.org")
    monkeypatch.setenv("ATOLL_BIND", "192.0.2.7")
    assert {"192.0.2.7", "atoll.example.org", "127.0.0.1"} <= set(Env().hosts)
    monkeypatch.setenv("ATOLL_BIND", "::")
    assert set(Env().hosts) == {"localhost", "127.0.0.1", "[::1]", "atoll.example.org"}


def test_databases(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite by default with immediate transactions; PostgreSQL by its URL; nothing else."""
    options = Env().database()["OPTIONS"]
    assert (options["transaction_mode"], "WAL" in options["init_command"]) == ("IMMEDIATE", True)
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:p%40ss@db.example:5433/atoll")
    found = Env().database()
    assert (found["USER"], found["PASSWORD"], found["HOST"], found["PORT"], found["NAME"]) == (
        "me",
        "p@ss",
        "db.example",
        "5433",
        "atoll",
    )
    monkeypatch.setenv("DATABASE_URL", "postgresql://me@/atoll?host=/run/PostgreSQL")
    found = Env().database()
    assert (found["USER"], found["HOST"], found["NAME"]) == ("me", "/run/PostgreSQL", "atoll")
    monkeypatch.setenv("DATABASE_URL", "mysql://x")
    with pytest.raises(ValueError, match="postgresql"):
        Env().database()


def test_secret_key_is_made_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first process makes it, readable by its user only; the next ones read it."""
    monkeypatch.setenv("ATOLL_DATA", str(tmp_path))
    first = Env().secret_key()
    assert len(first) == 64
    assert Env().secret_key() == first
    assert (tmp_path / "keys" / "secret_key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("uri", "fit"),
    [
        ("", True),
        ("qemu:///system", True),
        ("qemu+unix:///system?socket=/run/libvirt/libvirt-sock", True),
        ("qemu+tls://other/system", False),
        ("qemu+ssh://root@other/system", False),
        ("qemu+tcp://127.0.0.1/system", False),
        ("qemu://other/system", False),
        ("xen:///system", False),
    ],
)
def test_only_this_hosts_own_libvirt(monkeypatch: pytest.MonkeyPatch, uri: str, fit: bool) -> None:
    """Taps, sockets and pid files are local: machines on another host would never come up, and nobody would say why."""
    monkeypatch.setenv("ATOLL_LIBVIRT_URI", uri)
    if fit:
        assert Env().libvirt_uri == uri
    else:
        with pytest.raises(ValidationError, match="this host's own"):
            Env()
