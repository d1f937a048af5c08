"""People's keys: whose they are, where they log in, and when no more."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    SSHCertificate,
    load_ssh_public_identity,
)

from sandboxes.errors import Conflict, Forbidden, Invalid, NotFound, QuotaExceeded
from sandboxes.models import AuditEntry, Membership, SshKey, SshKeyKind, User
from sandboxes.services import ssh_keys, tokens
from sandboxes.services.ssh_keys import (
    ssh_certificate_issue,
    ssh_key_add,
    ssh_key_list,
    ssh_key_remove,
    ssh_login,
    ssh_login_allowed,
    ssh_login_record,
)
from tests.factories import Team, row


def line() -> str:
    """A new public key, as a file has it."""
    key = Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return f"{key.decode()} ada@laptop"


def test_a_key_logs_in(home: Team, other: Team) -> None:
    """Where its person may use the sandbox, and nowhere else; which is written down."""
    mine, theirs = row(home, state="running"), row(other, state="running")
    text = line()
    made = ssh_key_add(actor=home.member, name="", public_key=text)
    assert (made.name, made.kind) == ("ada@laptop", SshKeyKind.KEY)

    login = ssh_login(public_id=mine.public_id, public_key=text)

    assert login is not None
    assert (login.sandbox.pk, login.actor.user_id, login.key_id) == (mine.pk, home.member.user_id, made.pk)
    assert ssh_login(public_id=theirs.public_id, public_key=text) is None
    assert ssh_login(public_id=mine.public_id, public_key=line()) is None
    assert ssh_login(public_id=mine.public_id, public_key=text, authority=True) is None
    assert ssh_login(public_id="sbx_loc_00000000000000000000", public_key=text) is None
    ssh_login_record(login=login)
    made.refresh_from_db()
    assert made.last_used_at is not None
    assert AuditEntry.objects.filter(action="sandbox.ssh", target=mine.public_id, detail__key=made.fingerprint).exists()


def test_who_may_no_more(home: Team) -> None:
    """Without key, membership, role or account nobody comes in, and who is in goes."""
    sandbox = row(home, state="running")
    text = line()
    made = ssh_key_add(actor=home.member, name="a", public_key=text)
    login = ssh_login(public_id=sandbox.public_id, public_key=text)
    assert login is not None
    assert ssh_login_allowed(login=login)
    person = login.actor.user_id
    assert person is not None
    membership = Membership.objects.filter(user_id=person)
    membership.update(role="viewer")
    assert not ssh_login_allowed(login=login)
    assert ssh_login(public_id=sandbox.public_id, public_key=text) is None
    membership.update(role="member")
    User.objects.filter(pk=person).update(is_active=False)
    assert not ssh_login_allowed(login=login)
    assert ssh_login(public_id=sandbox.public_id, public_key=text) is None
    User.objects.filter(pk=person).update(is_active=True)
    assert ssh_login_allowed(login=login)
    ssh_key_remove(actor=home.member, key_id=made.pk)
    assert not ssh_login_allowed(login=login)
    assert ssh_login(public_id=sandbox.public_id, public_key=text) is None


def test_keys_are_ones_own(home: Team) -> None:
    """Nobody sees or removes another's, whatever his role; an organization's token has none."""
    made = ssh_key_add(actor=home.member, name="a", public_key=line())
    assert ssh_key_list(actor=home.owner) == []
    with pytest.raises(NotFound):
        ssh_key_remove(actor=home.owner, key_id=made.pk)
    _, secret = tokens.token_create(
        actor=home.owner, name="t", personal=False, scopes=["read", "sandboxes", "organization"]
    )
    actor = tokens.token_actor(secret=secret)
    for act in (
        lambda: ssh_key_add(actor=actor, name="a", public_key=line()),
        lambda: ssh_key_list(actor=actor),
        lambda: ssh_certificate_issue(actor=actor, public_key=line()),
    ):
        with pytest.raises(Forbidden):
            act()
    _, secret = tokens.token_create(actor=home.member, name="t", scopes=["sandboxes"])
    with pytest.raises(Forbidden):
        # It would outlive the token
        ssh_key_add(actor=tokens.token_actor(secret=secret), name="a", public_key=line())


def test_bounds(home: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same key twice, no key, a long name, too many."""
    text = line()
    ssh_key_add(actor=home.member, name="a", public_key=text)
    with pytest.raises(Conflict):
        ssh_key_add(actor=home.member, name="b", public_key=text)
    with pytest.raises(Invalid, match="one line"):
        ssh_key_add(actor=home.member, name="b", public_key="nonsense")
    with pytest.raises(Invalid, match="100"):
        ssh_key_add(actor=home.member, name="b" * 101, public_key=line())
    monkeypatch.setattr(ssh_keys, "MOST", 1)
    with pytest.raises(QuotaExceeded):
        ssh_key_add(actor=home.member, name="b", public_key=line())
    # Two people may have one key, each for himself
    assert ssh_key_add(actor=home.admin, name="a", public_key=text).user_id == home.admin.user_id


def signer_of(certificate: str) -> str:
    """The public key of the authority that signed it."""
    read = load_ssh_public_identity(certificate.encode())
    assert isinstance(read, SSHCertificate)
    return read.signature_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def test_certificates(home: Team) -> None:
    """Signed by the account's own authority; once that is removed none of before is taken, and there is another."""
    sandbox = row(home, state="running")
    first = ssh_certificate_issue(actor=home.member, public_key=line(), hours=2)
    again = ssh_certificate_issue(actor=home.member, public_key=line(), hours=2)
    signers = {signer_of(first), signer_of(again)}
    assert len(signers) == 1
    signer = signers.pop()
    own = SshKey.objects.get(kind=SshKeyKind.ISSUED)
    assert own.public_key == signer
    login = ssh_login(public_id=sandbox.public_id, public_key=signer, authority=True)
    assert login is not None
    assert login.actor.user_id == home.member.user_id
    assert ssh_login(public_id=sandbox.public_id, public_key=signer) is None

    ssh_key_remove(actor=home.member, key_id=own.pk)

    assert ssh_login(public_id=sandbox.public_id, public_key=signer, authority=True) is None
    ssh_certificate_issue(actor=home.member, public_key=line(), hours=2)
    assert SshKey.objects.get(kind=SshKeyKind.ISSUED).public_key != signer
    with pytest.raises(Invalid, match="24"):
        ssh_certificate_issue(actor=home.member, public_key=line(), hours=25)
    assert timedelta(hours=ssh_keys.LONGEST_HOURS) == timedelta(days=1)
