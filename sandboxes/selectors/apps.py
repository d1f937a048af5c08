"""Reads of apps, layers, revisions and timelines, within the actor's organization."""

from __future__ import annotations

from collections.abc import Mapping

from django.db.models import Count, Q, QuerySet

from sandboxes import permissions
from sandboxes.errors import Invalid, NotFound
from sandboxes.models import App, DeployTimeline, Layer, LayerUse, Revision, RevisionStatus
from sandboxes.permissions import Actor
from sandboxes.selectors.pages import PAGE, page_of

type Page[M] = tuple[list[M], str]
"""Rows, newest first, and the cursor of the next page, "" on the last."""


def apps_of(organization_id: int) -> QuerySet[App]:
    """All of an organization, with what is shown of them."""
    rows = App.objects.filter(organization_id=organization_id)
    return rows.prefetch_related("layer_uses__layer", "variables")


def layers_of(organization_id: int) -> QuerySet[Layer]:
    """All of an organization, with what is shown of them; `app_count`: apps that use it by themselves."""
    rows = Layer.objects.filter(organization_id=organization_id)
    counted = rows.annotate(app_count=Count("uses__app", distinct=True))
    return counted.prefetch_related("layer_uses__layer", "variables")


def app_get(*, actor: Actor, name: str, action: str = "app.view") -> App:
    """The app of that id or slug, for an actor who may do `action`. NotFound, Forbidden."""
    row = apps_of(actor.organization_id).filter(Q(public_id=name) | Q(slug=name)).first()
    if row is None:
        raise NotFound(f"there is no app {name[:40]!r} in this organization")
    permissions.require(actor, action, row.organization_id)
    return row


def app_list(
    *, actor: Actor, layer: str = "", labels: Mapping[str, str] | None = None, limit: int = PAGE, cursor: str = ""
) -> Page[App]:
    """A page of apps: those that use the layer (an id or slug) and have the labels. NotFound (the layer), Invalid."""
    permissions.require(actor, "app.view", actor.organization_id)
    rows = apps_of(actor.organization_id)
    if layer:
        rows = rows.filter(pk__in=_users(layer_get(actor=actor, name=layer)).values("app"))
    if labels:
        # In Python, because a key may hold any character and each database has another syntax for JSON paths.
        there = App.objects.filter(organization_id=actor.organization_id).values_list("pk", "labels")
        rows = rows.filter(
            pk__in=[pk for pk, own in there if all(own.get(key) == value for key, value in labels.items())]
        )
    return page_of(rows, limit=limit, cursor=cursor)


def layer_get(*, actor: Actor, name: str, action: str = "app.view") -> Layer:
    """The layer of that id or slug, for an actor who may do `action`. NotFound, Forbidden."""
    row = layers_of(actor.organization_id).filter(Q(public_id=name) | Q(slug=name)).first()
    if row is None:
        raise NotFound(f"there is no layer {name[:40]!r} in this organization")
    permissions.require(actor, action, row.organization_id)
    return row


def layer_list(*, actor: Actor, search: str = "", limit: int = PAGE, cursor: str = "") -> Page[Layer]:
    """A page of layers; `search`: a part of slug or description. Invalid."""
    permissions.require(actor, "app.view", actor.organization_id)
    rows = layers_of(actor.organization_id)
    if search:
        rows = rows.filter(Q(slug__icontains=search) | Q(description__icontains=search))
    return page_of(rows, limit=limit, cursor=cursor)


def layer_apps(*, actor: Actor, layer: Layer, limit: int = PAGE, cursor: str = "") -> Page[LayerUse]:
    """A page of the apps that use a layer by themselves, with its position in each. Invalid."""
    permissions.require(actor, "app.view", layer.organization_id)
    return page_of(_users(layer).select_related("app"), limit=limit, cursor=cursor)


def revision_get(*, actor: Actor, name: str, action: str = "app.view") -> Revision:
    """The revision of that id, for an actor who may do `action`. NotFound, Forbidden."""
    rows = _shown(Revision.objects.filter(app__organization_id=actor.organization_id))
    row = rows.filter(public_id=name).first()
    if row is None:
        raise NotFound(f"there is no revision {name[:40]!r} in this organization")
    permissions.require(actor, action, row.app.organization_id)
    return row


def revision_list(*, actor: Actor, app: App, status: str = "", limit: int = PAGE, cursor: str = "") -> Page[Revision]:
    """A page of an app's revisions, of one status where it is given. Invalid."""
    permissions.require(actor, "app.view", app.organization_id)
    rows = _shown(Revision.objects.filter(app=app))
    if status:
        if status not in RevisionStatus.values:
            raise Invalid(f"status is one of {', '.join(RevisionStatus.values)}", field="status")
        rows = rows.filter(status=status)
    return page_of(rows, limit=limit, cursor=cursor)


def timeline_list(*, actor: Actor, app: App, limit: int = PAGE, cursor: str = "") -> Page[DeployTimeline]:
    """A page of an app's timelines. Invalid."""
    permissions.require(actor, "app.view", app.organization_id)
    return page_of(DeployTimeline.objects.filter(app=app).select_related("app"), limit=limit, cursor=cursor)


def timelines_of(*, actor: Actor, revision: Revision) -> list[DeployTimeline]:
    """All timelines that a revision is in, newest first."""
    permissions.require(actor, "app.view", revision.app.organization_id)
    return list(revision.timelines.select_related("app").order_by("-pk"))


def _users(layer: Layer) -> QuerySet[LayerUse]:
    return LayerUse.objects.filter(layer=layer, app__isnull=False)


def _shown(rows: QuerySet[Revision]) -> QuerySet[Revision]:
    return rows.select_related("app").prefetch_related("layer_uses__layer", "variables")
