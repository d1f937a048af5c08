"""Passwords: set after a link, changed by the old one; other sessions and their sockets end, this one stays."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from django.test import Client

from sandboxes.models import AuditEntry, SignInLink, User
from sandboxes.services import accounts
from tests.factories import Team
from tests.ide.pages.test_views import signed_in

FIRST, SECOND = "tides come and go", "and the moon pulls"


def person() -> User:
    return User.objects.get(email="member@home.example")


def by_link() -> Client:
    client = Client()
    client.post(f"/login/{accounts.sign_in_link_create(user=person())}")
    return client


def twice(password: str, **more: str) -> dict[str, str]:
    return {"new_password1": password, "new_password2": password, **more}


def by_password(password: str) -> int:
    return Client().post("/login", {"email": person().email, "password": password}).status_code


def test_a_link_hints_at_a_password_until_there_is_one(home: Team) -> None:
    client = by_link()
    shown = client.get("/").content.decode()
    assert 'href="/password">Set a password</a> to sign in again' in shown
    assert "to sign in again" not in client.get("/").content.decode()
    assert client.post("/password", twice(FIRST))["Location"] == "/"
    assert by_password(FIRST) == 302
    assert "to sign in again" not in by_link().get("/").content.decode()


def test_other_sessions_end_and_this_one_stays(home: Team) -> None:
    """With them every link that was handed out before; each organization's audit says that it happened."""
    first, second = signed_in(home), signed_in(home)
    link = accounts.sign_in_link_create(user=person())
    answer = first.post("/password", twice(FIRST), follow=True)
    assert "signed out everywhere but here" in answer.content.decode()
    assert (first.get("/").status_code, second.get("/").status_code) == (200, 302)
    assert Client().post(f"/login/{link}").status_code == 410
    assert not SignInLink.objects.filter(user=person()).exists()
    entry = AuditEntry.objects.get(action="account.password")
    assert (entry.actor, entry.organization_id, entry.detail) == (person().email, home.organization.pk, {})


def test_a_password_is_changed_by_the_old_one(home: Team) -> None:
    client = signed_in(home)
    client.post("/password", twice(FIRST))
    assert client.post("/password", twice(SECOND)).status_code == 400
    wrong = client.post("/password", twice(SECOND, old_password="wrong"))
    assert "entered incorrectly" in wrong.content.decode()
    assert client.post("/password", twice(SECOND, old_password=FIRST)).status_code == 302
    assert (by_password(FIRST), by_password(SECOND)) == (400, 302)


def test_who_forgot_it_comes_in_by_a_link_and_sets_another_once(home: Team) -> None:
    accounts.password_set(user=person(), password=FIRST)
    client = by_link()
    assert "old_password" not in client.get("/password").content.decode()
    assert client.post("/password", twice(SECOND)).status_code == 302
    assert by_password(SECOND) == 302
    assert "old_password" in client.get("/password").content.decode()


def test_a_link_of_long_ago_does_not_spare_the_old_password(home: Team) -> None:
    accounts.password_set(user=person(), password=FIRST)
    client = by_link()
    session = client.session
    session["linked"] -= 3600
    session.save()
    assert "old_password" in client.get("/password").content.decode()


def test_a_password_that_is_easily_guessed_is_refused(home: Team) -> None:
    client = signed_in(home)
    for password, why in (
        ("short", "too short"),
        ("password123", "too common"),
        ("member@home.example", "too similar"),
    ):
        answer = client.post("/password", twice(password))
        assert answer.status_code == 400
        assert why in answer.content.decode()
    answer = client.post("/password", {"new_password1": FIRST, "new_password2": SECOND})
    assert "match" in answer.content.decode()
    assert not person().has_usable_password()


def test_a_stranger_sets_none(db: None) -> None:
    assert Client().post("/password", twice(FIRST))["Location"] == "/login?next=/password"


def test_an_invitation_is_renewed_until_its_person_has_come(home: Team) -> None:
    """The new link is in the answer once, and the list says until when it works and that he came."""
    client = signed_in(home, "admin")

    def ask(path: str, **body: str) -> tuple[int, Any]:
        answer = client.post(f"/api/v1/members{path}", body, content_type="application/json")
        return answer.status_code, answer.json()

    _status, made = ask("", email="new@example.org", role="member")
    again = f"/{made['member']['id']}/invitation"
    status, renewed = ask(again)
    assert (status, renewed["member"]["waiting"]) == (201, True)
    assert renewed["member"]["invited_until"] is not None
    paths = [urlsplit(link["sign_in_link"]).path for link in (made, renewed)]
    assert [Client().get(path).status_code for path in paths] == [410, 200]
    newcomer = Client()
    assert newcomer.post(paths[1], follow=True).status_code == 200
    assert ask(again)[0] == 409
    shown = client.get("/api/v1/members").json()[-1]
    assert (shown["waiting"], shown["invited_until"]) == (False, None)
    assert newcomer.post(f"/api/v1/members{again}").status_code == 403
