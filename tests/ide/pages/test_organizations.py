"""Organizations in pages: made, named, chosen; what is of another one is not there."""

from __future__ import annotations

import pytest
from django.test import Client

from sandboxes.models import AuditEntry, Membership, Organization, Role, User
from sandboxes.services import tokens
from tests import factories
from tests.factories import Team
from tests.ide.pages.test_views import config, signed_in
from vm.fake import FakeNode


def test_the_organization_is_switched_among_one_s_own(home: Team, other: Team) -> None:
    client = signed_in(home)
    assert client.post("/organization/switch", {"organization": "other"}).status_code == 404
    person = User.objects.get(email="member@home.example")
    Membership.objects.create(organization=other.organization, user=person, role="viewer")
    assert client.post("/organization/switch", {"organization": "other"}).status_code == 302
    assert config(client.get("/").content.decode())["organization"] == {"slug": "other", "name": "Other"}


def test_an_administrator_renames_the_organization(home: Team) -> None:
    client = signed_in(home, "admin")
    answer = client.post("/organization", {"organization": "home", "name": "Harbour"}, follow=True)
    assert "is called Harbour now" in answer.content.decode()
    assert config(answer.content.decode())["organization"] == {"slug": "home", "name": "Harbour"}
    assert AuditEntry.objects.filter(action="organization.rename", actor="admin@home.example").exists()
    wrong = client.post("/organization", {"organization": "home", "name": "   "})
    assert (wrong.status_code, Organization.objects.get(slug="home").name) == (400, "Harbour")


@pytest.mark.parametrize("role", ["member", "viewer"])
def test_others_see_the_settings_and_change_nothing(home: Team, role: str) -> None:
    client = signed_in(home, role)
    assert 'name="name"' not in client.get("/organization").content.decode()
    assert client.post("/organization", {"organization": "home", "name": "Mine"}).status_code == 403
    assert Organization.objects.get(slug="home").name == "Home"


def test_settings_change_the_organization_that_the_form_showed(home: Team, other: Team) -> None:
    """Another tab may have chosen another organization since; one that is not his is not there."""
    client = signed_in(home, "owner")
    assert client.post("/organization", {"organization": "other", "name": "Mine"}).status_code == 404
    Membership.objects.create(
        organization=other.organization, user=User.objects.get(email="owner@home.example"), role=Role.OWNER
    )
    client.post("/organization/switch", {"organization": "other"})
    client.post("/organization", {"organization": "home", "name": "Harbour"})
    assert set(Organization.objects.values_list("name", flat=True)) == {"Harbour", "Other"}


def test_whoever_makes_an_organization_owns_it_and_is_in_it(home: Team) -> None:
    client = signed_in(home, "viewer")
    answer = client.post("/organizations/new", {"name": "Tide Lab", "slug": ""}, follow=True)
    told = config(answer.content.decode())
    assert (told["organization"], told["role"]) == ({"slug": "tide-lab", "name": "Tide Lab"}, "owner")
    assert "Tide Lab is ready" in answer.content.decode()


def test_an_organization_that_cannot_be_made_says_why(home: Team) -> None:
    client = signed_in(home)
    for slug, name, why in (
        ("home", "X", "is taken"),
        ("No Good", "X", "1 to 40 of a-z"),
        ("", "北京", "no letters a-z"),
        ("x", "", "required"),
    ):
        answer = client.post("/organizations/new", {"name": name, "slug": slug})
        assert answer.status_code == 400
        assert why in answer.content.decode()
    assert Organization.objects.count() == 1


def test_a_person_without_an_organization_can_make_one(db: None) -> None:
    client = Client()
    client.force_login(factories.user("lone@example.org"), backend="django.contrib.auth.backends.ModelBackend")
    assert "/organizations/new" in client.get("/").content.decode()
    assert client.post("/organizations/new", {"name": "Lone"})["Location"] == "/"
    assert client.get("/").status_code == 200


def test_what_is_of_another_organization_is_not_there(home: Team, other: Team) -> None:
    """Also for the owner of one that was made a moment ago, on pages and over REST."""
    client = signed_in(home, "owner")
    client.post("/organizations/new", {"name": "Mine"})
    sandbox = factories.row(other).public_id
    token = tokens.token_create(actor=other.owner, name="x")[0].pk
    member = Membership.objects.get(organization=other.organization, role=Role.VIEWER).pk
    for path in (
        f"/sandboxes/{sandbox}",
        f"/api/v1/sandboxes/{sandbox}",
        f"/api/v1/sandboxes/{sandbox}?organization=mine",
    ):
        assert client.get(path).status_code == 404
    for path in (f"/api/v1/sandboxes/{sandbox}", f"/api/v1/tokens/{token}", f"/api/v1/members/{member}"):
        assert client.delete(path).status_code == 404
    for path in ("/api/v1/sandboxes", "/api/v1/members", "/api/v1/tokens", "/api/v1/audit"):
        assert client.get(path, {"organization": "other"}).status_code == 404
        assert "other" not in client.get(path, {"organization": "mine"}).content.decode()


def test_limits_are_shown_to_members_and_the_cap_is_set_by_owners(home: Team) -> None:
    """What is wrong is said beside the field; the other form keeps what is stored."""
    factories.row(home, state="running")
    page = signed_in(home, "viewer").get("/organization").content.decode()
    assert "Memory of running sandboxes" in page
    assert "1280" in page
    assert 'name="spending_cap"' not in page
    form = {"organization": "home", "spending_cap": "20"}
    assert signed_in(home, "admin").post("/organization/spending", form).status_code == 403
    owner = signed_in(home, "owner")
    assert "cap is set" in owner.post("/organization/spending", form, follow=True).content.decode()
    assert 'value="20.00"' in owner.get("/organization").content.decode()
    wrong = owner.post("/organization/spending", {**form, "spending_cap": "-3"})
    assert wrong.status_code == 400
    assert "greater than or equal to 0" in wrong.content.decode()
    assert 'value="Home"' in wrong.content.decode()
    owner.post("/organization/spending", {**form, "spending_cap": ""})
    assert Organization.objects.get(slug="home").spending_cap is None
    assert owner.post("/organization/spending", {**form, "organization": "elsewhere"}).status_code == 404


def test_what_sandboxes_may_reach_is_set_by_administrators(home: Team, node: FakeNode) -> None:
    """Everybody sees it; a pattern that is none is told beside its field, and what was typed stays."""
    page = signed_in(home, "viewer").get("/organization").content.decode()
    assert "Every public host" in page
    assert 'name="deny_net"' not in page
    form = {
        "organization": "home",
        "mode": "listed",
        "allow_net": "a.example\r\n\r\n b.example ",
        "deny_net": "x.example",
    }
    assert signed_in(home, "member").post("/organization/network", form).status_code == 403
    admin = signed_in(home, "admin")
    assert "may reach is set" in admin.post("/organization/network", form, follow=True).content.decode()
    organization = Organization.objects.get(slug="home")
    assert (organization.allow_net, organization.deny_net) == (["a.example", "b.example"], ["x.example"])
    assert "a.example" in signed_in(home, "viewer").get("/organization").content.decode()
    wrong = admin.post("/organization/network", {**form, "deny_net": "https://x.example"})
    assert wrong.status_code == 400
    assert "a URL" in wrong.content.decode()
    assert "https://x.example" in wrong.content.decode()
    admin.post("/organization/network", {**form, "mode": "all"})
    assert Organization.objects.get(slug="home").allow_net is None
    assert admin.post("/organization/network", {**form, "organization": "elsewhere"}).status_code == 404
