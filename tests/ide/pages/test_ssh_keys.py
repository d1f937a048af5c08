"""The page of one's own SSH keys."""

from __future__ import annotations

from sandboxes.models import SshKey
from tests.factories import Team
from tests.ide.pages.test_views import signed_in
from tests.sandboxes.services.test_ssh_keys import line


def test_keys_are_added_and_removed(home: Team) -> None:
    """Each is shown with its fingerprint; what is no key is said at its field."""
    client = signed_in(home, "viewer")
    answer = client.post("/ssh-keys", {"public_key": "nonsense", "name": ""})
    assert answer.status_code == 400
    assert b"A public key is one line" in answer.content
    assert client.post("/ssh-keys", {"public_key": line(), "name": "laptop"}).status_code == 302
    key = SshKey.objects.get()
    shown = client.get("/ssh-keys").content.decode()
    assert key.fingerprint in shown
    assert "laptop" in shown

    other = signed_in(home, "owner")
    assert key.fingerprint not in other.get("/ssh-keys").content.decode()
    other.post("/ssh-keys", {"remove": key.pk})
    assert SshKey.objects.exists()
    client.post("/ssh-keys", {"remove": key.pk})
    assert not SshKey.objects.exists()
