"""Apps, layers and revisions: what changes and what stays, who may, what refuses, and how secret variables are kept."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from sandboxes import app_rules, crypto
from sandboxes.app_rules import app_of, layer_of
from sandboxes.config import config
from sandboxes.errors import Conflict, DomainError, Forbidden, Invalid, NotFound, QuotaExceeded, SlugInUse
from sandboxes.models import App, AppVariable, AuditEntry, DeployTimeline, Layer, LayerUse, Revision
from sandboxes.selectors import apps as selectors
from sandboxes.services import apps, revisions
from sandboxes.services.app_variables import variable_value
from sandboxes.services.secrets import secrets_reseal
from tests.factories import Team
from vm.host.provision import key_add, keys_retire

VALUE = "v4lue-of-an-app"


def app(team: Team, **body: Any) -> App:
    return apps.app_create(wanted=app_of(body), actor=team.member)


def layer(team: Team, slug: str, **body: Any) -> Layer:
    return apps.layer_create(wanted=layer_of({"slug": slug, **body}), actor=team.member)


def change(row: App, team: Team, **body: Any) -> App:
    return apps.app_update(app=row, wanted=app_of(body), actor=team.member)


def values(row: App | Layer) -> dict[str, str]:
    return {one.name: one.value for one in row.variables.all()}


def test_what_is_replaced_and_what_is_merged(home: Team) -> None:
    base, top = layer(home, "base"), layer(home, "top", layers=["base"])
    row = app(
        home,
        slug="shop",
        labels={"a": "1", "b": "2"},
        layers=["top", base.public_id],
        env_vars=[{"key": "ONE", "value": "1"}, {"key": "TWO", "value": "2", "contexts": ["production", "build"]}],
        config={"runtime": {"type": "dynamic", "entrypoint": "main.ts"}},
    )
    assert [use.layer.slug for use in row.layer_uses.all()] == ["top", "base"]
    first = row.variables.get(name="ONE")
    changed = change(
        row,
        home,
        labels={"c": "3"},
        layers=["base"],
        env_vars=[
            {"id": first.public_id, "key": "FIRST", "value": "one"},
            {"key": "TWO", "contexts": "all"},
            {"key": "THREE", "value": "3"},
        ],
    )
    assert (changed.slug, changed.labels) == ("shop", {"c": "3"})
    assert changed.config == {"runtime": {"type": "dynamic", "entrypoint": "main.ts"}}
    assert [use.layer.slug for use in changed.layer_uses.all()] == ["base"]
    assert values(changed) == {"FIRST": "one", "TWO": "2", "THREE": "3"}
    assert changed.variables.get(name="TWO").contexts is None
    assert changed.created_at == row.created_at
    assert changed.updated_at - row.updated_at >= timedelta(milliseconds=1)
    fewer = change(changed, home, slug="store", env_vars=[{"key": "TWO", "delete": True}])
    assert values(fewer) == {"FIRST": "one", "THREE": "3"}
    assert selectors.app_get(actor=home.viewer, name="store").pk == row.pk
    assert [len(selectors.layer_apps(actor=home.viewer, layer=one)[0]) for one in (base, top)] == [1, 0]
    assert top.layer_uses.get().layer == base


def test_a_secret_variable_is_sealed_and_its_value_shown_only_with_a_new_one(home: Team) -> None:
    row = app(home, env_vars=[{"key": "TOKEN", "value": VALUE, "secret": True}])
    kept = row.variables.get()
    assert (kept.value, kept.secret) == ("", True)
    assert VALUE.encode() not in bytes(kept.sealed or b"")
    assert variable_value(kept) == VALUE
    with pytest.raises(Invalid, match="only with a new value"):
        change(row, home, env_vars=[{"key": "TOKEN", "secret": False}])
    kept = change(row, home, env_vars=[{"key": "TOKEN", "contexts": ["build"]}]).variables.get()
    assert (variable_value(kept), kept.contexts) == (VALUE, ["build"])
    kept = change(row, home, env_vars=[{"key": "TOKEN", "secret": False, "value": "shown"}]).variables.get()
    assert (kept.value, kept.sealed, variable_value(kept)) == ("shown", None, "shown")
    kept = change(row, home, env_vars=[{"key": "TOKEN", "secret": True}]).variables.get()
    assert (kept.value, variable_value(kept)) == ("", "shown")
    assert VALUE not in str(list(AuditEntry.objects.values()))


def test_another_sealing_key_opens_secret_variables(home: Team) -> None:
    """Sealed anew like secrets, so that the old key can go; another row does not open with what was sealed for this."""
    row = layer(home, "base", env_vars=[{"key": "TOKEN", "value": VALUE, "secret": True}]).variables.get()
    path = config()["secrets_key"]
    key_add(path)
    assert secrets_reseal() == 1
    keys_retire(path)
    row.refresh_from_db()
    assert (row.sealing_key, variable_value(row)) == (crypto.keyring().current, VALUE)
    assert secrets_reseal() == 0
    other = AppVariable(public_id="another", organization_id=home.organization.pk, name="TOKEN", sealed=row.sealed)
    with pytest.raises(DomainError):
        variable_value(other)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"slug": "Not A Slug"}, Invalid),
        ({"slug": "shop--branch"}, Invalid),
        ({"slug": "taken"}, SlugInUse),
        ({"labels": {str(n): "" for n in range(6)}}, Invalid),
        ({"layers": ["nowhere"]}, NotFound),
        ({"layers": ["base", "base"]}, Invalid),
        ({"env_vars": [{"key": "DENO_REGION", "value": "x"}]}, Invalid),
        ({"env_vars": [{"key": "1ST", "value": "x"}]}, Invalid),
        ({"env_vars": [{"key": "A"}]}, Invalid),
        ({"env_vars": [{"key": "A", "value": "x" * (app_rules.VALUE_BYTES + 1)}]}, Invalid),
        ({"env_vars": [{"key": "A", "value": "x", "contexts": ["Not One"]}]}, Invalid),
        ({"env_vars": [{"key": "A", "value": "x", "contexts": []}]}, Invalid),
        ({"env_vars": [{"value": "x"}]}, Invalid),
        ({"env_vars": [{"id": "nowhere", "value": "x"}]}, NotFound),
        ({"env_vars": [{"key": "NOWHERE", "delete": True}]}, NotFound),
        ({"config": {"framework": "nextjs", "runtime": {"type": "static", "cwd": "."}}}, Invalid),
        ({"config": {"framework": "rails"}}, Invalid),
        ({"config": {"runtime": {"type": "static"}}}, Invalid),
        ({"config": {"runtime": {"type": "dynamic", "entrypoint": "a.ts", "args": [1]}}}, Invalid),
        ({"config": {"surprise": 1}}, Invalid),
        ({"config": {"build": "x" * app_rules.CONFIG_BYTES}}, Invalid),
    ],
)
def test_what_is_refused_leaves_nothing_behind(home: Team, body: dict[str, Any], kind: type[DomainError]) -> None:
    app(home, slug="taken")
    layer(home, "base")
    with pytest.raises(kind):
        app(home, **body)
    assert App.objects.count() == 1
    assert not AppVariable.objects.exists()
    assert not LayerUse.objects.exists()


def test_names_of_the_server_that_may_be_set(home: Team) -> None:
    assert values(app(home, env_vars=[{"key": "DENO_AUTH_TOKENS", "value": "x"}])) == {"DENO_AUTH_TOKENS": "x"}


def test_a_layer_is_never_below_itself_and_not_removed_from_under_others(home: Team) -> None:
    base = layer(home, "base")
    layer(home, "middle", layers=["base"])
    layer(home, "top", layers=["middle"])
    with pytest.raises(Invalid, match="below itself"):
        apps.layer_update(layer=base, wanted=layer_of({"layers": ["top"]}), actor=home.member)
    with pytest.raises(Conflict, match="used by middle"):
        apps.layer_delete(layer=base, actor=home.member)
    user = app(home, slug="shop", layers=["base"])
    found, _ = selectors.layer_apps(actor=home.viewer, layer=base)
    assert [(use.app, use.position) for use in found] == [(user, 0)]
    apps.app_delete(app=user, actor=home.member)
    for slug in ("top", "middle", "base"):
        apps.layer_delete(layer=selectors.layer_get(actor=home.member, name=slug), actor=home.member)
    assert not Layer.objects.exists()


def test_limits(home: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandboxes.services.apps.app_rules.APPS", 1)
    monkeypatch.setattr("sandboxes.services.app_variables.VARIABLES", 2)
    row = app(home, env_vars=[{"key": "A", "value": "1"}, {"key": "B", "value": "2"}])
    with pytest.raises(QuotaExceeded):
        app(home)
    with pytest.raises(QuotaExceeded):
        change(row, home, env_vars=[{"key": "C", "value": "3"}])
    assert len(values(row)) == 2


def test_nobody_else_s(home: Team, other: Team) -> None:
    """Neither seen nor changed nor used from another organization, and not changed by who may only look."""
    row, below = app(home, slug="shop"), layer(home, "base")
    for name in ("shop", row.public_id):
        with pytest.raises(NotFound):
            selectors.app_get(actor=other.owner, name=name)
    with pytest.raises(NotFound):
        selectors.layer_get(actor=other.owner, name=below.public_id)
    with pytest.raises(NotFound):
        app(other, layers=[below.public_id])
    assert selectors.app_list(actor=other.owner) == ([], "")
    with pytest.raises(NotFound):
        apps.app_update(app=row, wanted=app_of({"slug": "mine"}), actor=other.owner)
    with pytest.raises(NotFound):
        apps.layer_delete(layer=below, actor=other.owner)
    with pytest.raises(Forbidden):
        apps.app_delete(app=row, actor=home.viewer)
    app(other, slug="shop")


def test_revisions(home: Team, other: Team) -> None:
    """A build can be asked to end, once; what is being built or active stays; deleted is gone."""
    row = app(home, slug="shop")
    building = Revision.objects.create(public_id="rev1", app=row, status="building")
    active = Revision.objects.create(public_id="rev2", app=row, status="succeeded", build_finished_at=timezone.now())
    line = DeployTimeline.objects.create(app=row, slug="production", context="production", active=active)
    line.revisions.add(active)
    actor = home.member
    assert [one.public_id for one in selectors.revision_list(actor=actor, app=row)[0]] == ["rev2", "rev1"]
    assert selectors.revision_list(actor=actor, app=row, status="building")[0] == [building]
    with pytest.raises(Invalid):
        selectors.revision_list(actor=actor, app=row, status="odd")
    with pytest.raises(NotFound):
        selectors.revision_get(actor=other.owner, name="rev1")
    asked = revisions.revision_cancel(revision=building, actor=actor).cancellation_requested_at
    assert asked is not None
    assert revisions.revision_cancel(revision=building, actor=actor).cancellation_requested_at == asked
    for revision in (building, active):
        with pytest.raises(Conflict):
            revisions.revision_delete(revision=revision, actor=actor)
    with pytest.raises(Conflict):
        revisions.revision_cancel(revision=active, actor=actor)
    with pytest.raises(Forbidden):
        revisions.revision_retain(revision=active, retention="indefinite", actor=actor)
    assert revisions.revision_retain(revision=active, retention="auto", actor=actor) == active
    assert selectors.timelines_of(actor=actor, revision=active) == [line]
    Revision.objects.filter(pk=building.pk).update(status="failed")
    revisions.revision_delete(revision=building, actor=actor)
    apps.app_delete(app=row, actor=actor)
    assert not Revision.objects.exists()
