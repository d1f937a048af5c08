"""Tokens, sign-in links and members: secrets work once or until revoked, and one owner always remains."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import update_last_login
from django.utils import timezone

from sandboxes.errors import Conflict, Forbidden, Invalid, InvalidToken, LinkUsed, NotFound, QuotaExceeded
from sandboxes.models import AuditEntry, Membership, Role, SignInLink, Token, User
from sandboxes.selectors.members import member_list
from sandboxes.services import accounts, members, organizations, tokens
from tests.factories import Team
from tests.sandboxes.services.test_lifecycle import in_parallel


def member_id(team: Team, role: Role) -> int:
    return Membership.objects.get(organization=team.organization, role=role).pk


def test_token(home: Team) -> None:
    """A token acts as its maker within its scopes; only its hash is kept, and its use is noted."""
    token, secret = tokens.token_create(actor=home.member, name="ci")
    assert secret.startswith("ddo_")
    actor = tokens.token_actor(secret=secret)
    assert (actor.role, actor.label, actor.scopes) == (
        Role.MEMBER,
        "member@home.example",
        frozenset({"read", "sandboxes"}),
    )
    token.refresh_from_db()
    assert token.last_used_at is not None
    assert secret not in str(list(Token.objects.values()) + list(AuditEntry.objects.values()))


def test_last_use_is_written_once_a_minute(home: Team) -> None:
    """A busy token does not write a row with every call."""
    token, secret = tokens.token_create(actor=home.member, name="ci")
    tokens.token_actor(secret=secret)
    Token.objects.filter(pk=token.pk).update(last_used_at=(recent := timezone.now() - timedelta(seconds=30)))
    tokens.token_actor(secret=secret)
    token.refresh_from_db()
    assert token.last_used_at == recent


def test_token_that_is_none(home: Team) -> None:
    """Unknown, expired, revoked, and one whose owner left: all are the same error."""
    token, secret = tokens.token_create(actor=home.member, name="a", expires_in_days=1)
    Token.objects.filter(pk=token.pk).update(expires_at=timezone.now())
    revoked, second = tokens.token_create(actor=home.member, name="b")
    tokens.token_revoke(token_id=revoked.pk, actor=home.member)
    _left, third = tokens.token_create(actor=home.admin, name="c")
    members.member_remove(actor=home.owner, member_id=member_id(home, Role.ADMIN))
    for bad in ("", "ddo_nothing", secret, second, third):
        with pytest.raises(InvalidToken):
            tokens.token_actor(secret=bad)


def test_token_of_an_organization(home: Team, other: Team) -> None:
    """It outlives its maker's membership and works in its own organization only."""
    _token, secret = tokens.token_create(actor=home.admin, name="deploy", personal=False)
    members.member_remove(actor=home.owner, member_id=member_id(home, Role.ADMIN))
    assert tokens.token_actor(secret=secret, organization="home").organization_id == home.organization.pk
    with pytest.raises(InvalidToken):
        tokens.token_actor(secret=secret, organization="other")


def test_token_is_not_a_ladder(home: Team) -> None:
    """Nobody makes a token that may do more than he himself."""
    with pytest.raises(Forbidden):
        tokens.token_create(actor=home.member, name="x", personal=False)
    with pytest.raises(Forbidden):
        tokens.token_create(actor=home.admin, name="x", personal=False, role=Role.OWNER)
    _token, secret = tokens.token_create(actor=home.owner, name="x", scopes=["organization"])
    with pytest.raises(Forbidden):
        tokens.token_create(actor=tokens.token_actor(secret=secret), name="y", scopes=["sandboxes"])
    with pytest.raises(Invalid):
        tokens.token_create(actor=home.owner, name="x", scopes=["everything"])


def test_revoking(home: Team, other: Team) -> None:
    """One's own, and anybody's as administrator; another organization's does not exist."""
    token, _secret = tokens.token_create(actor=home.owner, name="x")
    with pytest.raises(Forbidden):
        tokens.token_revoke(token_id=token.pk, actor=home.member)
    with pytest.raises(NotFound):
        tokens.token_revoke(token_id=token.pk, actor=other.owner)
    tokens.token_revoke(token_id=token.pk, actor=home.admin)
    tokens.token_revoke(token_id=token.pk, actor=home.admin)
    assert AuditEntry.objects.filter(action="token.revoke").count() == 1


def test_sign_in_link(home: Team) -> None:
    """It works once, within its time, and only its hash is kept."""
    user = User.objects.get(email="owner@home.example")
    secret = accounts.sign_in_link_create(user=user)
    assert accounts.sign_in_link_valid(secret=secret)
    assert accounts.sign_in_link_use(secret=secret) == user
    assert not accounts.sign_in_link_valid(secret=secret)
    with pytest.raises(LinkUsed):
        accounts.sign_in_link_use(secret=secret)
    late = accounts.sign_in_link_create(user=user)
    SignInLink.objects.update(expires_at=timezone.now())
    with pytest.raises(LinkUsed):
        accounts.sign_in_link_use(secret=late)
    assert secret not in str(list(SignInLink.objects.values()))


def test_sign_in_link_in_a_race(home: Team) -> None:
    """Of two who use it at once one gets in."""
    secret = accounts.sign_in_link_create(user=User.objects.get(email="owner@home.example"))
    results = in_parallel(lambda: accounts.sign_in_link_use(secret=secret), 4)
    assert sorted(type(result).__name__ for result in results) == ["LinkUsed"] * 3 + ["User"]


def test_invitation(home: Team) -> None:
    """A link comes for newcomers only: for an account in use it would be a way into it."""
    membership, secret = members.member_invite(actor=home.admin, email="New@Example.org ", role=Role.MEMBER)
    assert (membership.user.email, bool(secret)) == ("new@example.org", True)
    arrived("known@example.org")
    _membership, none = members.member_invite(actor=home.admin, email="known@example.org", role=Role.VIEWER)
    assert none is None
    with pytest.raises(Conflict):
        members.member_invite(actor=home.admin, email="new@example.org", role=Role.MEMBER)
    with pytest.raises(Forbidden):
        members.member_invite(actor=home.admin, email="x@example.org", role=Role.OWNER)
    with pytest.raises(Invalid):
        members.member_invite(actor=home.admin, email="nobody", role=Role.MEMBER)


def arrived(email: str) -> User:
    """Somebody who has signed in."""
    user = User.objects.filter(email=email).first() or User.objects.create_user(email)
    update_last_login(User, user)
    return user


def newcomer(team: Team, role: Role = Role.MEMBER) -> tuple[int, str]:
    """A member who has not signed in, and his link's secret."""
    membership, secret = members.member_invite(actor=team.owner, email="new@example.org", role=role)
    assert secret is not None
    return membership.pk, secret


def test_an_invitation_works_for_a_week(home: Team) -> None:
    """A link that a person prints for himself works for 15 minutes."""
    newcomer(home)
    assert SignInLink.objects.get().expires_at - timezone.now() > timedelta(days=6, hours=23)
    [(_member, until)] = [entry for entry in member_list(actor=home.viewer) if entry[0].user.waiting and entry[1]]
    assert until == SignInLink.objects.get().expires_at
    SignInLink.objects.update(expires_at=timezone.now())
    assert [entry for entry in member_list(actor=home.viewer) if entry[1]] == []


def test_an_invitation_is_renewed_until_it_was_used(home: Team, other: Team) -> None:
    """The link before ends; whoever has signed in, by link or password, gets none."""
    member, first = newcomer(home)
    _membership, second = members.invitation_renew(actor=home.admin, member_id=member)
    with pytest.raises(LinkUsed):
        accounts.sign_in_link_use(secret=first)
    user = accounts.sign_in_link_use(secret=second)
    with pytest.raises(LinkUsed):
        accounts.sign_in_link_use(secret=second)
    assert AuditEntry.objects.get(action="member.invite_again").target == "new@example.org"
    arrived(user.email)
    with pytest.raises(Conflict):
        members.invitation_renew(actor=home.admin, member_id=member)
    User.objects.filter(pk=user.pk).update(last_login=None)
    accounts.password_set(user=User.objects.get(pk=user.pk), password="tides come and go")
    with pytest.raises(Conflict):
        members.invitation_renew(actor=home.admin, member_id=member)
    with pytest.raises(NotFound):
        members.invitation_renew(actor=other.owner, member_id=member)
    with pytest.raises(Forbidden):
        members.invitation_renew(actor=home.member, member_id=member)


def test_an_invitation_is_not_a_ladder(home: Team) -> None:
    """An administrator gets no link to an owner, and one that he has ends when its person is given a higher role."""
    member, secret = newcomer(home)
    members.member_change(actor=home.owner, member_id=member, role=Role.VIEWER)
    assert accounts.sign_in_link_valid(secret=secret)
    members.member_change(actor=home.owner, member_id=member, role=Role.OWNER)
    assert not accounts.sign_in_link_valid(secret=secret)
    with pytest.raises(Forbidden):
        members.invitation_renew(actor=home.admin, member_id=member)
    members.invitation_renew(actor=home.owner, member_id=member)


def test_an_invitation_opens_no_other_organization(home: Team, other: Team) -> None:
    """Who has not signed in belongs to one organization, so that its link leads nowhere else; removing him ends it."""
    member, secret = newcomer(home)
    with pytest.raises(Conflict):
        members.member_invite(actor=other.admin, email="new@example.org", role=Role.MEMBER)
    members.member_remove(actor=home.owner, member_id=member)
    assert not accounts.sign_in_link_valid(secret=secret)
    _membership, theirs = members.member_invite(actor=other.admin, email="new@example.org", role=Role.MEMBER)
    assert theirs is not None
    arrived(accounts.sign_in_link_use(secret=theirs).email)
    assert members.member_invite(actor=home.admin, email="new@example.org", role=Role.MEMBER)[1] is None


def test_two_organizations_invite_a_newcomer_at_once(home: Team, other: Team) -> None:
    """One of them gets him."""
    User.objects.create_user("new@example.org")
    actors = iter([home.admin, other.admin])
    results = in_parallel(
        lambda: members.member_invite(actor=next(actors), email="new@example.org", role=Role.MEMBER), 2
    )
    assert sorted(type(result).__name__ for result in results) == ["Conflict", "tuple"]


def test_last_owner_stays(home: Team) -> None:
    """The last owner neither leaves nor becomes something else; with a second one he may."""
    last = member_id(home, Role.OWNER)
    with pytest.raises(Conflict):
        members.member_remove(actor=home.owner, member_id=last)
    with pytest.raises(Conflict):
        members.member_change(actor=home.owner, member_id=last, role=Role.ADMIN)
    members.member_change(actor=home.owner, member_id=member_id(home, Role.ADMIN), role=Role.OWNER)
    members.member_remove(actor=home.owner, member_id=last)


def test_two_owners_cannot_remove_each_other(home: Team) -> None:
    """Of two owners who leave at once one stays."""
    members.member_change(actor=home.owner, member_id=member_id(home, Role.ADMIN), role=Role.OWNER)
    owners = iter(list(Membership.objects.filter(organization=home.organization, role=Role.OWNER)))

    def leave() -> None:
        membership = next(owners)
        members.member_remove(
            actor=accounts.actor_of(user=User.objects.get(pk=membership.user_id), membership=membership),
            member_id=membership.pk,
        )

    results = in_parallel(leave, 2)
    assert sorted(type(result).__name__ for result in results) == ["Conflict", "NoneType"]


def test_roles_of_members(home: Team, other: Team) -> None:
    """A member changes nobody, an administrator no owner, and nobody another organization's members."""
    with pytest.raises(Forbidden):
        members.member_change(actor=home.member, member_id=member_id(home, Role.VIEWER), role=Role.MEMBER)
    with pytest.raises(Forbidden):
        members.member_change(actor=home.admin, member_id=member_id(home, Role.MEMBER), role=Role.OWNER)
    with pytest.raises(Forbidden):
        members.member_remove(actor=home.admin, member_id=member_id(home, Role.OWNER))
    with pytest.raises(NotFound):
        members.member_remove(actor=home.owner, member_id=member_id(other, Role.VIEWER))
    members.member_remove(actor=home.viewer, member_id=member_id(home, Role.VIEWER))


def test_organization(home: Team) -> None:
    """Whoever makes one owns it; slugs are unique and well-formed."""
    user = User.objects.get(email="viewer@home.example")
    organization = organizations.organization_create(user=user, slug="second", name="Second")
    assert accounts.actor_for_user(user=user, organization="second").role == Role.OWNER
    with pytest.raises(Conflict):
        organizations.organization_create(user=user, slug="second", name="Again")
    for slug in ("", "-a", "a-", "A", "a" * 41, "a b"):
        with pytest.raises(Invalid):
            organizations.organization_create(user=user, slug=slug, name="x")
    assert organization.slug == "second"


def test_organization_is_renamed(home: Team) -> None:
    """By owners and administrators; the audit row has both names, and the slug stays."""
    renamed = organizations.organization_rename(actor=home.admin, name=" Harbour ")
    assert (renamed.name, renamed.slug) == ("Harbour", "home")
    entry = AuditEntry.objects.get(action="organization.rename")
    assert (entry.actor, entry.target, entry.detail) == (
        "admin@home.example",
        "home",
        {"name": "Harbour", "before": "Home"},
    )
    with pytest.raises(Forbidden):
        organizations.organization_rename(actor=home.member, name="Mine")
    for name in ("", "   ", "x" * 101, "a\nb"):
        with pytest.raises(Invalid):
            organizations.organization_rename(actor=home.owner, name=name)


def test_organizations_of_one_person_are_bounded(home: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has machines of its own, so nobody owns any number of them; being a member counts for nothing."""
    monkeypatch.setattr("sandboxes.quotas.ORGANIZATIONS", 1)
    user = User.objects.get(email="admin@home.example")
    organizations.organization_create(user=user, slug="one", name="One")
    with pytest.raises(QuotaExceeded):
        organizations.organization_create(user=user, slug="two", name="Two")


def test_preparing_twice_changes_nothing(home: Team) -> None:
    """`make up` a second time finds what the first made."""
    first = accounts.installation_prepare(email="a@b.example", organization="main")
    entries = AuditEntry.objects.count()
    assert accounts.installation_prepare(email="A@b.example", organization="main") == first
    assert AuditEntry.objects.count() == entries
