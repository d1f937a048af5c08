"""Apps and the layers that they share: the only module that writes their rows. Nothing is deployed by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from sandboxes import app_rules, audit, ids, permissions
from sandboxes.app_rules import WantedApp, WantedLayer, WantedVariable
from sandboxes.errors import Conflict, Invalid, NotFound, QuotaExceeded, SlugInUse
from sandboxes.models import App, Layer, LayerUse, Organization
from sandboxes.permissions import Actor
from sandboxes.selectors.apps import app_get, layer_get
from sandboxes.services.app_variables import variables_merge


@sensitive_variables("wanted")
def app_create(*, wanted: WantedApp, actor: Actor) -> App:
    """A new app, with a random slug where none is wanted.

    Forbidden, Invalid, NotFound (a layer), SlugInUse, QuotaExceeded, SecretsLocked.
    """
    permissions.require(actor, "app.edit", actor.organization_id)
    with transaction.atomic():
        _lock(actor)
        there = App.objects.filter(organization_id=actor.organization_id).count()
        if there >= app_rules.APPS:
            raise QuotaExceeded(f"an organization has at most {app_rules.APPS} apps", limit=app_rules.APPS)
        now = timezone.now()
        app = App(
            public_id=ids.app_id(),
            organization_id=actor.organization_id,
            slug=wanted.slug or ids.app_slug(),
            creator_name=actor.label[:150],
            created_at=now,
            updated_at=now,
        )
        names = _write_app(app, wanted)
        _record(actor, "app.create", app, variables=names)
    return app_get(actor=actor, name=app.public_id)


@sensitive_variables("wanted")
def app_update(*, app: App, wanted: WantedApp, actor: Actor) -> App:
    """Change what is wanted: labels, layers and config become others, variables are merged. Errors as for creating."""
    permissions.require(actor, "app.edit", app.organization_id)
    with transaction.atomic():
        _lock(actor)
        app = _again(App, app)
        app.slug = wanted.slug or app.slug
        app.updated_at = _later_than(app.updated_at)
        names = _write_app(app, wanted)
        _record(actor, "app.update", app, variables=names)
    return app_get(actor=actor, name=app.public_id)


def app_delete(*, app: App, actor: Actor) -> None:
    """Remove it with its revisions; its slug is free. Forbidden."""
    permissions.require(actor, "app.edit", app.organization_id)
    with transaction.atomic():
        _lock(actor)
        _record(actor, "app.delete", app)
        app.delete()


@sensitive_variables("wanted")
def layer_create(*, wanted: WantedLayer, actor: Actor) -> Layer:
    """A new layer. Forbidden, Invalid, NotFound (a layer below it), SlugInUse, QuotaExceeded, SecretsLocked."""
    permissions.require(actor, "app.edit", actor.organization_id)
    if wanted.slug is None:
        raise Invalid("a layer needs a slug", field="slug")
    with transaction.atomic():
        _lock(actor)
        there = Layer.objects.filter(organization_id=actor.organization_id).count()
        if there >= app_rules.LAYERS:
            raise QuotaExceeded(f"an organization has at most {app_rules.LAYERS} layers", limit=app_rules.LAYERS)
        now = timezone.now()
        layer = Layer(
            public_id=ids.app_id(),
            organization_id=actor.organization_id,
            slug=wanted.slug,
            creator_name=actor.label[:150],
            created_at=now,
            updated_at=now,
        )
        names = _write_layer(layer, wanted)
        _record(actor, "layer.create", layer, variables=names)
    return layer_get(actor=actor, name=layer.public_id)


@sensitive_variables("wanted")
def layer_update(*, layer: Layer, wanted: WantedLayer, actor: Actor) -> Layer:
    """Change what is wanted: the layers below it become others, variables are merged. Errors as for creating."""
    permissions.require(actor, "app.edit", layer.organization_id)
    with transaction.atomic():
        _lock(actor)
        layer = _again(Layer, layer)
        layer.slug = wanted.slug or layer.slug
        layer.updated_at = _later_than(layer.updated_at)
        names = _write_layer(layer, wanted)
        _record(actor, "layer.update", layer, variables=names)
    return layer_get(actor=actor, name=layer.public_id)


def layer_delete(*, layer: Layer, actor: Actor) -> None:
    """Remove it. Forbidden; Conflict while anything uses it: its variables would vanish from there unseen."""
    permissions.require(actor, "app.edit", layer.organization_id)
    with transaction.atomic():
        _lock(actor)
        use = LayerUse.objects.select_related("app", "above", "revision").filter(layer=layer).first()
        if use is not None:
            whose = use.app or use.above or use.revision
            raise Conflict(f"the layer {layer.slug} is used by {whose}: take it out of there first")
        _record(actor, "layer.delete", layer)
        layer.delete()


@sensitive_variables("wanted")
def _write_app(app: App, wanted: WantedApp) -> list[str]:
    if wanted.labels is not None:
        app.labels = dict(wanted.labels)
    if wanted.config is not None:
        app.config = dict(wanted.config)
    _save(app)
    return _write_shared(app, wanted.layers, wanted.variables)


@sensitive_variables("wanted")
def _write_layer(layer: Layer, wanted: WantedLayer) -> list[str]:
    if wanted.description is not None:
        layer.description = wanted.description
    _save(layer)
    return _write_shared(layer, wanted.layers, wanted.variables)


@sensitive_variables("variables")
def _write_shared(owner: App | Layer, layers: Sequence[str] | None, variables: Sequence[WantedVariable]) -> list[str]:
    if layers is not None:
        rows = [_layer(owner, name) for name in layers]
        if len({row.pk for row in rows}) < len(rows):
            raise Invalid("a layer is in the list twice", field="layers")
        if isinstance(owner, Layer):
            _require_no_circle(owner, rows)
        owner.layer_uses.all().delete()
        whose: Mapping[str, Any] = {"app": owner} if isinstance(owner, App) else {"above": owner}
        LayerUse.objects.bulk_create(
            LayerUse(layer=row, position=position, **whose) for position, row in enumerate(rows)
        )
    return variables_merge(owner=owner, wanted=variables)


def _layer(owner: App | Layer, name: str) -> Layer:
    rows = Layer.objects.filter(organization_id=owner.organization_id)
    row = rows.filter(Q(public_id=name) | Q(slug=name)).first()
    if row is None:
        raise NotFound(f"there is no layer {name[:40]!r} in this organization")
    return row


def _require_no_circle(layer: Layer, below: Sequence[Layer]) -> None:
    seen, waiting = set[int](), [row.pk for row in below]
    while waiting:
        if (pk := waiting.pop()) == layer.pk:
            raise Invalid(f"the layer {layer.slug} would be below itself", field="layers")
        if pk not in seen:
            seen.add(pk)
            waiting += LayerUse.objects.filter(above_id=pk).values_list("layer_id", flat=True)


def _save(row: App | Layer) -> None:
    kind = "an app" if isinstance(row, App) else "a layer"
    try:
        with transaction.atomic():
            row.save()
    except IntegrityError:
        raise SlugInUse(f"there is {kind} {row.slug} already", field="slug") from None


def _lock(actor: Actor) -> None:
    Organization.objects.select_for_update(no_key=True).get(pk=actor.organization_id)


def _again[M: (App, Layer)](model: type[M], row: M) -> M:
    there = model.objects.filter(pk=row.pk).first()
    if there is None:
        raise NotFound
    return there


def _later_than(moment: datetime) -> datetime:
    # Clients tell an update by this, and it is written in milliseconds
    return max(timezone.now(), moment + timedelta(milliseconds=1))


def _record(actor: Actor, action: str, row: App | Layer, **detail: Any) -> None:
    audit.record(
        actor=actor, organization_id=row.organization_id, action=action, target=row.slug, id=row.public_id, **detail
    )
