"""Makes what an installation needs on its host before any process starts: service users, directories, keys.

Everything is made once and left alone afterwards; running it again changes nothing.
"""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import secrets
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from vm.host.authority import authority_make
from vm.host.run import run


@dataclass(frozen=True, slots=True)
class Users:
    """The unprivileged users: `service` runs web and worker, `machine` runs QEMU, `proxy` the interceptors."""

    service: str = "atoll"
    machine: str = "atoll-qemu"
    proxy: str = "atoll-proxy"


def provision(*, data: Path, image_cache: Path, users: Users) -> None:
    """Create users, directories and keys. PermissionError without root; OSError for what the host refuses."""
    for name in (users.service, users.machine, users.proxy):
        _user(name)
    service = pwd.getpwnam(users.service)
    root = (0, 0)
    shared = (0, service.pw_gid)
    own = (service.pw_uid, service.pw_gid)
    _directory(data, 0o755, root)
    _directory(data / "run", 0o755, root)
    _directory(data / "keys", 0o750, shared)
    _directory(data / "logs", 0o750, shared)
    _directory(data / "machines", 0o711, root)
    for name in ("libvirt", "disks", "templates"):
        _directory(data / name, 0o711, root)
    for name in ("db", "queue"):
        _directory(data / name, 0o700, own)
    image_cache.mkdir(parents=True, exist_ok=True)
    _register(data, image_cache)
    _key(data / "keys" / "secret_key", shared)
    _key(data / "keys" / "node.key", shared)
    authority_make(certificate=data / "keys" / "egress-ca.pem", key=data / "keys" / "egress-ca.key")
    _key(data / "keys" / "secrets.key", shared)
    ssh_host_key_make(data / "keys" / "ssh_host_ed25519_key", shared)


def roots(image_cache: Path) -> list[Path]:
    """The data roots that use this image cache and are still there: several installations may share it."""
    registered = [Path(entry.read_text()) for entry in (image_cache / ".roots").glob("*")]
    return [data for data in registered if (data / "machines").is_dir()]


def unregister(data: Path, image_cache: Path) -> None:
    """Forget a data root that is given up. Repeatable."""
    _registration(data, image_cache).unlink(missing_ok=True)


def _register(data: Path, image_cache: Path) -> None:
    entry = _registration(data, image_cache)
    entry.parent.mkdir(exist_ok=True)
    entry.write_text(str(data))


def _registration(data: Path, image_cache: Path) -> Path:
    return image_cache / ".roots" / hashlib.sha256(str(data).encode()).hexdigest()[:16]


def _user(name: str) -> None:
    try:
        pwd.getpwnam(name)
    except KeyError:
        argv = ["useradd", "--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"]
        try:
            grp.getgrnam(name)
            run([*argv, "--gid", name, name])
        except KeyError:
            run([*argv, "--user-group", name])


def _directory(path: Path, mode: int, owner: tuple[int, int]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    os.chown(path, *owner)
    path.chmod(mode)


def ssh_host_key_make(path: Path, owner: tuple[int, int]) -> None:
    """A key that SSH clients will know this installation by, made once; `owner` (uid, gid) may read it. OSError."""
    if path.exists():
        _hand_over(path, owner)
        return
    made = ed25519.Ed25519PrivateKey.generate()
    pem = made.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    _write(path, pem.decode().splitlines(keepends=False), owner)


def key_add(path: Path) -> None:
    """Put a new key before the one in this file; nothing where one is being changed already. OSError.

    The file holds a key a line; the first seals, the others only open.
    """
    lines = path.read_text().split()
    if len(lines) == 1:
        _replace(path, [secrets.token_urlsafe(48), *lines])


def keys_retire(path: Path) -> None:
    """Keep the first key of this file only: nothing is sealed with another one any more. Repeatable. OSError."""
    lines = path.read_text().split()
    if len(lines) > 1:
        _replace(path, lines[:1])


def _key(path: Path, owner: tuple[int, int]) -> None:
    if path.exists():
        _hand_over(path, owner)
    else:
        _write(path, [secrets.token_urlsafe(48)], owner)


def _replace(path: Path, lines: list[str]) -> None:
    known = path.stat()
    _write(path, lines, (known.st_uid, known.st_gid))


def _write(path: Path, lines: list[str], owner: tuple[int, int]) -> None:
    # Complete or not there: a half-written key would lock everybody out
    fresh = path.with_suffix(".new")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        os.fsync(file.fileno())
    _hand_over(fresh, owner)
    fresh.rename(path)


def _hand_over(path: Path, owner: tuple[int, int]) -> None:
    os.chown(path, *owner)
    path.chmod(0o640)
