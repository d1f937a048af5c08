"""Pages show a person what is of his organizations, and nobody else anything."""

from __future__ import annotations

import json
import re

import pytest
from django.test import Client

from sandboxes.models import Membership, User
from sandboxes.services import accounts
from tests import factories
from tests.factories import Team

PAGES = ("/", "/tokens", "/api-docs", "/secrets", "/members", "/usage", "/organization")


def signed_in(team: Team, role: str = "member") -> Client:
    client = Client()
    client.force_login(
        User.objects.get(email=f"{role}@{team.organization.slug}.example"),
        backend="django.contrib.auth.backends.ModelBackend",
    )
    return client


def config(html: str) -> dict[str, object]:
    found = re.search(r'<script id="page-config" type="application/json">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    read: dict[str, object] = json.loads(found[1])
    return read


@pytest.mark.parametrize("path", [*PAGES, "/sandboxes/sbx_loc_00000000000000000000"])
def test_a_stranger_is_sent_to_sign_in(db: None, path: str) -> None:
    answer = Client().get(path)
    assert answer.status_code == 302
    assert answer["Location"] == f"/login?next={path}"


@pytest.mark.parametrize("path", PAGES)
def test_a_page_says_who_looks_and_what_they_may(home: Team, path: str) -> None:
    answer = signed_in(home, "viewer").get(path)
    assert answer.status_code == 200
    told = config(answer.content.decode())
    assert told["organization"] == {"slug": "home", "name": "Home"}
    assert told["role"] == "viewer"
    assert "sandbox.view" in told["may"]  # type: ignore[operator]
    assert "sandbox.create" not in told["may"]  # type: ignore[operator]


def test_scripts_need_the_page_s_nonce(home: Team) -> None:
    """The policy names a nonce, new for each answer, and every script of the page carries it."""
    client = signed_in(home)
    first, second = client.get("/"), client.get("/")
    nonces = [re.search(r"'nonce-([^']+)'", a["Content-Security-Policy"])[1] for a in (first, second)]  # type: ignore[index]
    assert nonces[0] != nonces[1]
    scripts = re.findall(r"<script(?![^>]*application/json)[^>]*>", first.content.decode())
    assert scripts
    assert all(f'nonce="{nonces[0]}"' in tag for tag in scripts)


def test_a_workspace_opens_for_its_members_only(home: Team, other: Team) -> None:
    sandbox = factories.row(home, name="Tides & <b>waves</b>")
    path = f"/sandboxes/{sandbox.public_id}"
    answer = signed_in(home).get(path)
    assert answer.status_code == 200
    assert "<b>waves" not in answer.content.decode()
    assert config(answer.content.decode())["sandbox"] == sandbox.public_id
    assert signed_in(home, "viewer").get(path).status_code == 403
    assert signed_in(other, "owner").get(path).status_code == 404


def test_a_workspace_opens_in_its_own_organization_whichever_is_chosen(home: Team, other: Team) -> None:
    person = User.objects.get(email="member@home.example")
    Membership.objects.create(organization=other.organization, user=person, role="member")
    client = signed_in(home)
    assert client.post("/organization/switch", {"organization": "home"}).status_code == 302
    answer = client.get(f"/sandboxes/{factories.row(other).public_id}")
    assert config(answer.content.decode())["organization"] == {"slug": "other", "name": "Other"}


def test_a_person_without_an_organization_is_told_so(db: None) -> None:
    client = Client()
    client.force_login(factories.user("lone@example.org"), backend="django.contrib.auth.backends.ModelBackend")
    answer = client.get("/")
    assert answer.status_code == 403
    assert "belong to no organization" in answer.content.decode()


def test_a_link_is_not_used_up_by_looking_and_signs_in_once(home: Team) -> None:
    """Mail scanners look at links; only the button uses one."""
    person = User.objects.get(email="member@home.example")
    path = f"/login/{accounts.sign_in_link_create(user=person)}"
    assert Client().get(path).status_code == 200
    assert Client().head(path).status_code == 405
    client = Client()
    assert client.post(path)["Location"] == "/"
    assert client.get("/").status_code == 200
    assert Client().post(path).status_code == 410
    assert Client().get(path).status_code == 410


def test_a_password_signs_in_and_leads_only_to_our_own_pages(home: Team) -> None:
    person = User.objects.get(email="member@home.example")
    person.set_password("a long enough secret")
    person.save()
    form = {"email": "Member@Home.example", "password": "a long enough secret"}
    assert Client().post("/login", {**form, "next": "/tokens"})["Location"] == "/tokens"
    assert Client().post("/login", {**form, "next": "https://evil.example/"})["Location"] == "/"
    assert Client().post("/login", {**form, "next": "//evil.example/"})["Location"] == "/"
    wrong = Client().post("/login", {**form, "password": "wrong"})
    assert wrong.status_code == 400
    assert "do not fit together" in wrong.content.decode()


def test_many_wrong_passwords_close_the_door_for_a_while(home: Team) -> None:
    client = Client()
    answers = [client.post("/login", {"email": "member@home.example", "password": "no"}) for _ in range(10)]
    assert answers[-1].status_code == 429
    assert "Too many wrong passwords" in answers[-1].content.decode()


def test_signing_out_takes_a_post(home: Team) -> None:
    client = signed_in(home)
    assert client.get("/logout").status_code == 405
    assert client.post("/logout").status_code == 302
    assert client.get("/").status_code == 302
