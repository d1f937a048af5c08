"""Public keys as OpenSSH's own programs make and read them."""

from __future__ import annotations

import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from sandboxes import ssh_keys
from sandboxes.ssh_keys import BadKey


def made(folder: Path, *options: str) -> str:
    """A new public key's line."""
    subprocess.check_call(["ssh-keygen", "-q", "-N", "", "-C", "a comment", "-f", str(folder / "key"), *options])
    return (folder / "key.pub").read_text()


@pytest.mark.parametrize("options", [["-t", "ed25519"], ["-t", "ecdsa"], ["-t", "rsa", "-b", "2048"]])
def test_keys_that_are_taken(tmp_path: Path, options: list[str]) -> None:
    """Without their comment, and with the fingerprint that ssh-keygen shows."""
    line = made(tmp_path, *options)
    parsed = ssh_keys.parse(line)
    assert parsed == " ".join(line.split()[:2])
    shown = subprocess.check_output(["ssh-keygen", "-l", "-f", str(tmp_path / "key.pub")], text=True)
    assert ssh_keys.fingerprint(parsed) == shown.split()[1]


def test_keys_that_are_not_taken(tmp_path: Path) -> None:
    """What is no key, a private one, and a weak one; each is said why."""
    weak = made(tmp_path, "-t", "rsa", "-b", "1024")
    with pytest.raises(BadKey, match="too weak"):
        ssh_keys.parse(weak)
    with pytest.raises(BadKey, match="one line"):
        ssh_keys.parse((tmp_path / "key").read_text())
    with pytest.raises(BadKey, match="private key"):
        ssh_keys.parse("-----BEGIN OPENSSH PRIVATE KEY----- abc")
    for text in ("", "ssh-ed25519", "ssh-ed25519 !!!", "ssh-ed25519 AAAA", "ssh-rsa " + "A" * 20_000):
        with pytest.raises(BadKey):
            ssh_keys.parse(text)


def test_a_certificate(tmp_path: Path) -> None:
    """ssh-keygen reads whom it is for, until when, and who signed it; the same words give the same authority."""
    line = ssh_keys.parse(made(tmp_path, "-t", "ed25519"))
    private, public = ssh_keys.authority("secret", "salt")
    assert ssh_keys.authority("secret", "salt")[1] == public
    assert ssh_keys.authority("secret", "other")[1] != public
    assert ssh_keys.authority("other", "salt")[1] != public

    text = ssh_keys.certificate(
        public_key=line, signer=private, name="ada@example.org", lifetime=timedelta(hours=1), serial=7
    )

    (tmp_path / "key-cert.pub").write_text(text)
    shown = subprocess.check_output(["ssh-keygen", "-L", "-f", str(tmp_path / "key-cert.pub")], text=True)
    assert 'Key ID: "ada@example.org"' in shown
    assert f"Signing CA: ED25519 {ssh_keys.fingerprint(public)}" in shown
    assert "permit-pty" in shown
    assert "user certificate" in shown
