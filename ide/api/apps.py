"""`/api/v1/apps`, `/api/v1/layers` and `/api/v1/revisions`: what is kept of apps; nothing deploys them yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.http import HttpRequest
from ninja import Router, Status

from ide.api import app_schemas as schemas
from ide.api.app_json import app_json, layer_app_json, layer_json, revision_json, timeline_json
from ide.api.schemas import Problem
from sandboxes.app_rules import app_of, layer_of
from sandboxes.database import in_thread
from sandboxes.models import App, Layer, Revision
from sandboxes.permissions import Actor
from sandboxes.selectors import apps as selectors
from sandboxes.selectors.pages import PAGE
from sandboxes.services import apps as service
from sandboxes.services import revisions

router = Router(tags=["apps"])
type Json = dict[str, Any]
REFUSED = {400: Problem, 403: Problem, 404: Problem, 409: Problem, 429: Problem, 503: Problem}


def _actor(request: HttpRequest) -> Actor:
    actor: Actor = request.auth  # type: ignore[attr-defined]
    return actor


def _page[Row](page: tuple[list[Row], str], shown: Callable[[Row], Json]) -> Json:
    rows, following = page
    return {"items": [shown(row) for row in rows], "next": following or None}


async def _app(request: HttpRequest, app: str) -> App:
    return await in_thread(selectors.app_get, actor=_actor(request), name=app)


async def _layer(request: HttpRequest, layer: str) -> Layer:
    return await in_thread(selectors.layer_get, actor=_actor(request), name=layer)


async def _revision(request: HttpRequest, revision: str) -> Revision:
    return await in_thread(selectors.revision_get, actor=_actor(request), name=revision)


@router.get("/apps", response={200: schemas.AppPage, 400: Problem, 404: Problem}, exclude_unset=True)
async def apps(request: HttpRequest, layer: str = "", limit: int = PAGE, cursor: str = "") -> Json:
    """The organization's apps, newest first; those that use `layer` where it is given."""
    found = await in_thread(selectors.app_list, actor=_actor(request), layer=layer, limit=limit, cursor=cursor)
    return _page(found, app_json)


@router.post("/apps", response={201: schemas.AppOut, **REFUSED}, exclude_unset=True)
async def create_app(request: HttpRequest, body: schemas.AppIn) -> Any:
    """Make one, with a random slug where none is given."""
    wanted = app_of(body.model_dump(exclude_unset=True))
    return Status(201, app_json(await in_thread(service.app_create, wanted=wanted, actor=_actor(request))))


@router.get("/apps/{app}", response={200: schemas.AppOut, 404: Problem}, exclude_unset=True)
async def one_app(request: HttpRequest, app: str) -> Json:
    """One of them, by id or slug."""
    return app_json(await _app(request, app))


@router.patch("/apps/{app}", response={200: schemas.AppOut, **REFUSED}, exclude_unset=True)
async def change_app(request: HttpRequest, app: str, body: schemas.AppIn) -> Json:
    """Change what is given: variables are merged, the rest is replaced."""
    row, wanted = await _app(request, app), app_of(body.model_dump(exclude_unset=True))
    return app_json(await in_thread(service.app_update, app=row, wanted=wanted, actor=_actor(request)))


@router.delete("/apps/{app}", response={204: None, 403: Problem, 404: Problem})
async def delete_app(request: HttpRequest, app: str) -> Any:
    """Remove it with its revisions."""
    row = await _app(request, app)
    await in_thread(service.app_delete, app=row, actor=_actor(request))
    return Status(204, None)


@router.get(
    "/apps/{app}/revisions", response={200: schemas.RevisionPage, 400: Problem, 404: Problem}, exclude_unset=True
)
async def app_revisions(request: HttpRequest, app: str, status: str = "", limit: int = PAGE, cursor: str = "") -> Json:
    """Its revisions, newest first."""
    row, actor = await _app(request, app), _actor(request)
    found = await in_thread(selectors.revision_list, actor=actor, app=row, status=status, limit=limit, cursor=cursor)
    return _page(found, revision_json)


@router.get("/apps/{app}/timelines", response={200: schemas.DeployTimelinePage, 400: Problem, 404: Problem})
async def app_timelines(request: HttpRequest, app: str, limit: int = PAGE, cursor: str = "") -> Json:
    """Its timelines, newest first."""
    row, actor = await _app(request, app), _actor(request)
    found = await in_thread(selectors.timeline_list, actor=actor, app=row, limit=limit, cursor=cursor)
    return _page(found, timeline_json)


@router.get("/layers", response={200: schemas.LayerPage, 400: Problem}, exclude_unset=True)
async def layers(request: HttpRequest, search: str = "", limit: int = PAGE, cursor: str = "") -> Json:
    """The organization's layers, newest first; `search`: a part of slug or description."""
    actor = _actor(request)
    found = await in_thread(selectors.layer_list, actor=actor, search=search, limit=limit, cursor=cursor)
    return _page(found, layer_json)


@router.post("/layers", response={201: schemas.LayerOut, **REFUSED}, exclude_unset=True)
async def create_layer(request: HttpRequest, body: schemas.LayerIn) -> Any:
    """Make one."""
    wanted = layer_of(body.model_dump(exclude_unset=True))
    return Status(201, layer_json(await in_thread(service.layer_create, wanted=wanted, actor=_actor(request))))


@router.get("/layers/{layer}", response={200: schemas.LayerOut, 404: Problem}, exclude_unset=True)
async def one_layer(request: HttpRequest, layer: str) -> Json:
    """One of them, by id or slug."""
    return layer_json(await _layer(request, layer))


@router.patch("/layers/{layer}", response={200: schemas.LayerOut, **REFUSED}, exclude_unset=True)
async def change_layer(request: HttpRequest, layer: str, body: schemas.LayerIn) -> Json:
    """Change what is given: variables are merged, the rest is replaced."""
    row, wanted = await _layer(request, layer), layer_of(body.model_dump(exclude_unset=True))
    return layer_json(await in_thread(service.layer_update, layer=row, wanted=wanted, actor=_actor(request)))


@router.delete("/layers/{layer}", response={204: None, 403: Problem, 404: Problem, 409: Problem})
async def delete_layer(request: HttpRequest, layer: str) -> Any:
    """Remove one that nothing uses."""
    row = await _layer(request, layer)
    await in_thread(service.layer_delete, layer=row, actor=_actor(request))
    return Status(204, None)


@router.get("/layers/{layer}/apps", response={200: schemas.LayerAppPage, 400: Problem, 404: Problem})
async def layer_apps(request: HttpRequest, layer: str, limit: int = PAGE, cursor: str = "") -> Json:
    """The apps that use it by themselves."""
    row, actor = await _layer(request, layer), _actor(request)
    found = await in_thread(selectors.layer_apps, actor=actor, layer=row, limit=limit, cursor=cursor)
    return _page(found, layer_app_json)


@router.get("/revisions/{revision}", response={200: schemas.RevisionOut, 404: Problem}, exclude_unset=True)
async def one_revision(request: HttpRequest, revision: str) -> Json:
    """One revision."""
    return revision_json(await _revision(request, revision))


@router.post("/revisions/{revision}/cancel", response={200: schemas.RevisionOut, **REFUSED}, exclude_unset=True)
async def cancel_revision(request: HttpRequest, revision: str) -> Json:
    """Ask for the end of its build."""
    row = await _revision(request, revision)
    return revision_json(await in_thread(revisions.revision_cancel, revision=row, actor=_actor(request)))


@router.delete("/revisions/{revision}", response={204: None, 403: Problem, 404: Problem, 409: Problem})
async def delete_revision(request: HttpRequest, revision: str) -> Any:
    """Remove one that is neither being built nor active."""
    row = await _revision(request, revision)
    await in_thread(revisions.revision_delete, revision=row, actor=_actor(request))
    return Status(204, None)
