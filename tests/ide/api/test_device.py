"""A program is let in by a person who confirms its code on a page, once, and not by whoever follows a link."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from sandboxes.models import DeviceLogin, Membership, Token
from sandboxes.services import device_logins
from tests.factories import Team
from tests.ide.pages.test_views import signed_in


def post(path: str, body: Any) -> tuple[int, Any]:
    answer = Client().post(f"/api/v1/device/{path}", body, content_type="application/json")
    return answer.status_code, answer.json()


@pytest.fixture
def begun(home: Team) -> dict[str, Any]:
    status, login = post("login", {"client_name": "laptop\x1b[2J"})
    assert status == 201
    return dict(login)


def state(begun: dict[str, Any]) -> str:
    status, answer = post("token", {"secret": begun["secret"]})
    assert status == 200
    return str(answer["state"])


def test_a_person_lets_it_in(home: Team, begun: dict[str, Any]) -> None:
    assert state(begun) == "pending"
    person = signed_in(home)
    page = person.get("/device", {"code": begun["user_code"].lower().replace("-", " ")})
    assert page.status_code == 200
    assert begun["user_code"] in page.content.decode()
    assert "laptop" in page.content.decode()
    assert "\x1b" not in page.content.decode()
    assert state(begun) == "pending"  # looking decides nothing
    assert "is let in" in person.post("/device", {"code": begun["user_code"], "answer": "allow"}).content.decode()

    status, answer = post("token", {"secret": begun["secret"]})
    assert (status, answer["state"], answer["organization"]) == (200, "granted", "home")
    assert state(begun) == "expired"  # told once
    bearer = {"Authorization": f"Bearer {answer['token']}"}
    me = Client().get("/api/v1/me", headers=bearer).json()
    assert (me["user"]["email"], me["organization"]["slug"]) == ("member@home.example", "home")
    token = Token.objects.get()
    assert (token.name, token.scopes) == ("atoll on laptop[2J", ["read", "sandboxes"])
    assert token.expires_at is not None
    # It makes no further tokens
    again = Client().post("/api/v1/tokens", {"name": "x"}, content_type="application/json", headers=bearer)
    assert again.status_code == 403
    assert not DeviceLogin.objects.exists()


def test_a_person_denies_it(home: Team, begun: dict[str, Any]) -> None:
    person = signed_in(home)
    assert "is not let in" in person.post("/device", {"code": begun["user_code"], "answer": "deny"}).content.decode()
    assert state(begun) == "denied"
    assert person.post("/device", {"code": begun["user_code"], "answer": "allow"}).status_code == 404
    assert state(begun) == "denied"
    assert not Token.objects.exists()


def test_nobody_but_a_member_confirms(home: Team, begun: dict[str, Any]) -> None:
    """Without a session one signs in first, a viewer has no tokens, and another site's form is refused."""
    answer = Client().get("/device", {"code": begun["user_code"]})
    assert answer.status_code == 302
    assert begun["user_code"] in answer["Location"]
    assert signed_in(home, "viewer").get("/device").status_code == 403
    checked = Client(enforce_csrf_checks=True)
    checked.cookies = signed_in(home).cookies
    assert checked.post("/device", {"code": begun["user_code"], "answer": "allow"}).status_code == 403
    assert state(begun) == "pending"


def test_whoever_left_meanwhile_lets_nothing_in(home: Team, begun: dict[str, Any]) -> None:
    signed_in(home).post("/device", {"code": begun["user_code"], "answer": "allow"})
    Membership.objects.filter(user__email="member@home.example").delete()
    assert state(begun) == "denied"
    assert not Token.objects.exists()


def test_it_ends_by_itself(home: Team, begun: dict[str, Any]) -> None:
    DeviceLogin.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert state(begun) == "expired"
    assert signed_in(home).get("/device", {"code": begun["user_code"]}).status_code == 404
    post("login", {"client_name": "next"})
    assert DeviceLogin.objects.count() == 1


def test_wrong_codes_and_secrets(home: Team, begun: dict[str, Any]) -> None:
    assert post("token", {"secret": "guess"})[1]["state"] == "expired"
    for code in ("AAAA-AAAA", "x", "B" * 5000):
        assert signed_in(home).get("/device", {"code": code}).status_code == 404


def test_there_is_an_end_to_what_anybody_may_begin(home: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_logins, "MOST", 2)
    assert [post("login", {"client_name": "x"})[0] for _ in range(3)] == [201, 201, 429]
