"""`manage.py rotate-secrets-key` on a database of its own: a new key, all rows, and only then the old key goes."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vm.host.provision import key_add, keys_retire

CHECKOUT = Path(__file__).resolve().parents[2]
MAKE = """
import django, sys
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from sandboxes.models import Organization
from sandboxes.permissions import Actor, Role
from sandboxes.secret_rules import WantedSecret
from sandboxes.services.secrets import secret_create
organization = Organization.objects.create(slug="home", name="Home")
actor = Actor(organization_id=organization.pk, role=Role.OWNER, label="ada")
for name in sys.argv[1:]:
    secret_create(wanted=WantedSecret(name=name, value=f"v4lue of {name}", hosts=["a.example"]), actor=actor)
"""
READ = """
import django
django.setup()
from sandboxes.errors import SecretsLocked
from sandboxes.models import Organization, Sandbox
from sandboxes.services.lifecycle import machine_wanted
from sandboxes import ids
from django.utils import timezone
sandbox = Sandbox.objects.create(
    public_id=ids.sandbox_id("loc"), organization=Organization.objects.get(), machine=ids.machine_id(), region="loc",
    memory_mb=1280, vcpus=2, disk_gib=10, state_since=timezone.now(),
)
try:
    print(*(secret.value for secret in machine_wanted(sandbox)[1].secrets), sep="|")
except SecretsLocked as error:
    print(error.message)
"""


class Place:
    """A data root with a key and a database."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.key = data / "keys" / "secrets.key"
        for folder in ("keys", "db"):
            (data / folder).mkdir()
        self.key.write_text("a" * 64)
        self.key.chmod(0o640)
        self.environment = {**os.environ, "ATOLL_DATA": str(data), "DJANGO_SETTINGS_MODULE": "ide.settings.base"}

    def start(self, *argv: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *argv],
            cwd=CHECKOUT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *argv: str) -> tuple[int, str]:
        process = self.start(*argv)
        out, _ = process.communicate(timeout=120)
        return process.returncode, out

    def rotate(self) -> tuple[int, str]:
        return self.run("manage.py", "rotate-secrets-key")

    def values(self) -> str:
        return self.run("-c", READ)[1].strip()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    code, out = made.run("-c", MAKE, "A", "B")
    assert code == 0, out
    return made


def test_all_is_sealed_with_a_new_key(place: Place) -> None:
    """The old key's file opens nothing then; owner and mode of the file stay."""
    database = place.data / "db" / "atoll.sqlite3"
    assert place.rotate() == (0, "secrets sealed with the new key: 2\n")
    new = place.key.read_text()
    assert new.split() != ["a" * 64]
    assert len(new.split()) == 1
    assert place.key.stat().st_mode & 0o777 == 0o640
    assert place.values() == "v4lue of A|v4lue of B"
    place.key.write_text("a" * 64)
    assert "is sealed with the key" in place.values()
    raw = b"".join(file.read_bytes() for file in database.parent.iterdir())
    assert b"a.example" in raw
    assert b"v4lue" not in raw


def test_what_was_interrupted_goes_on(place: Place) -> None:
    """A key that was put before the old one is the new one: no third is made."""
    key_add(place.key)
    both = place.key.read_text().split()
    assert (len(both), both[1]) == (2, "a" * 64)
    key_add(place.key)
    assert place.key.read_text().split() == both
    assert place.values() == "v4lue of A|v4lue of B"
    assert place.rotate()[0] == 0
    assert place.key.read_text().split() == both[:1]
    assert place.values() == "v4lue of A|v4lue of B"
    keys_retire(place.key)
    assert place.key.read_text().split() == both[:1]


def test_what_cannot_be_opened_keeps_the_old_key(place: Place) -> None:
    """It says which secret and what to do, in one line, and goes on once that is done."""
    place.key.write_text("b" * 64)
    code, out = place.rotate()
    assert code == 1
    assert len(out.splitlines()) == 1
    assert "is sealed with the key" in out
    assert "put that key back" in out
    keys = place.key.read_text().split()
    assert keys[1] == "b" * 64
    place.key.write_text("\n".join([*keys, "a" * 64]))
    assert place.rotate() == (0, "secrets sealed with the new key: 2\n")
    assert place.key.read_text().split() == keys[:1]


def test_a_missing_key_is_told(place: Place) -> None:
    place.key.unlink()
    code, out = place.rotate()
    assert code == 1
    assert "secrets.key: No such file or directory" in out


def test_two_wait_for_each_other(place: Place) -> None:
    """Neither takes the other's new key for the old one."""
    handle = os.open(place.key.parent, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    running = [place.start("manage.py", "rotate-secrets-key") for _ in range(2)]
    time.sleep(2)
    assert place.key.read_text() == "a" * 64
    os.close(handle)
    said = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert place.values() == "v4lue of A|v4lue of B"
