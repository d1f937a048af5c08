"""The SDKs' plain HTTP calls about apps, layers, revisions and timelines; deploying is answered "not yet"."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.debug import sensitive_variables

from ide.api.app_json import app_json, layer_app_json, layer_json, revision_json, timeline_json
from ide.api.sdk import labels_of, sdk_view
from ide.api.sdk_json import json_object, page_asked, page_response
from sandboxes.app_rules import app_of, layer_of
from sandboxes.database import in_thread
from sandboxes.errors import NotAvailable
from sandboxes.permissions import Actor
from sandboxes.selectors import apps as selectors
from sandboxes.selectors.sandboxes import sandbox_get
from sandboxes.services import apps, revisions

NOT_YET = "Atoll does not deploy apps yet: apps, layers and their variables are kept, and nothing of them runs"


@sdk_view("GET", "POST")
@sensitive_variables()
async def apps_view(request: HttpRequest, actor: Actor) -> HttpResponse:
    """GET lists, POST creates."""
    if request.method == "GET":
        layer, labels, asked = request.GET.get("layer", ""), labels_of(request), page_asked(request)
        rows, following = await in_thread(selectors.app_list, actor=actor, layer=layer, labels=labels, **asked)
        return page_response(request, [app_json(row) for row in rows], following)
    made = await in_thread(apps.app_create, wanted=app_of(json_object(request)), actor=actor)
    return JsonResponse(app_json(made), status=201)


@sdk_view("GET", "PATCH", "DELETE")
@sensitive_variables()
async def app_view(request: HttpRequest, actor: Actor, app: str) -> HttpResponse:
    """One app, by id or slug."""
    row = await in_thread(selectors.app_get, actor=actor, name=app)
    if request.method == "DELETE":
        await in_thread(apps.app_delete, app=row, actor=actor)
        return HttpResponse(status=204)
    if request.method == "PATCH":
        row = await in_thread(apps.app_update, app=row, wanted=app_of(json_object(request)), actor=actor)
    return JsonResponse(app_json(row))


@sdk_view("GET")
async def app_revisions(request: HttpRequest, actor: Actor, app: str) -> HttpResponse:
    """An app's revisions."""
    row = await in_thread(selectors.app_get, actor=actor, name=app)
    status, asked = request.GET.get("status", ""), page_asked(request)
    rows, following = await in_thread(selectors.revision_list, actor=actor, app=row, status=status, **asked)
    return page_response(request, [revision_json(one) for one in rows], following)


@sdk_view("GET")
async def app_timelines(request: HttpRequest, actor: Actor, app: str) -> HttpResponse:
    """An app's timelines."""
    row = await in_thread(selectors.app_get, actor=actor, name=app)
    rows, following = await in_thread(selectors.timeline_list, actor=actor, app=row, **page_asked(request))
    return page_response(request, [timeline_json(one) for one in rows], following)


@sdk_view("GET", "POST")
async def app_not_yet(request: HttpRequest, actor: Actor, app: str) -> HttpResponse:
    """Deploying an app, and the logs of one that runs."""
    await in_thread(selectors.app_get, actor=actor, name=app)
    raise NotAvailable(NOT_YET)


@sdk_view("POST")
async def sandbox_deploy(request: HttpRequest, actor: Actor, sandbox: str) -> HttpResponse:
    """Deploying what a sandbox holds."""
    await in_thread(sandbox_get, actor=actor, public_id=sandbox)
    raise NotAvailable(NOT_YET)


@sdk_view("GET", "PATCH", "DELETE")
async def revision_view(request: HttpRequest, actor: Actor, revision: str) -> HttpResponse:
    """One revision."""
    row = await in_thread(selectors.revision_get, actor=actor, name=revision)
    if request.method == "DELETE":
        await in_thread(revisions.revision_delete, revision=row, actor=actor)
        return HttpResponse(status=204)
    if request.method == "PATCH":
        retention = json_object(request).get("retention")
        row = await in_thread(revisions.revision_retain, revision=row, retention=retention, actor=actor)
    return JsonResponse(revision_json(row))


@sdk_view("POST")
async def revision_cancel(request: HttpRequest, actor: Actor, revision: str) -> HttpResponse:
    """Ask for the end of its build; the body may be empty."""
    row = await in_thread(selectors.revision_get, actor=actor, name=revision)
    return JsonResponse(revision_json(await in_thread(revisions.revision_cancel, revision=row, actor=actor)))


@sdk_view("GET")
async def revision_timelines(request: HttpRequest, actor: Actor, revision: str) -> HttpResponse:
    """The timelines that it is in, all at once."""
    row = await in_thread(selectors.revision_get, actor=actor, name=revision)
    found = await in_thread(selectors.timelines_of, actor=actor, revision=row)
    return JsonResponse([timeline_json(one) for one in found], safe=False)


@sdk_view("GET")
async def revision_not_yet(request: HttpRequest, actor: Actor, revision: str) -> HttpResponse:
    """How a build goes, and what it says."""
    await in_thread(selectors.revision_get, actor=actor, name=revision)
    raise NotAvailable(NOT_YET)


@sdk_view("GET", "POST")
@sensitive_variables()
async def layers_view(request: HttpRequest, actor: Actor) -> HttpResponse:
    """GET lists, POST creates."""
    if request.method == "GET":
        search, asked = request.GET.get("search", ""), page_asked(request)
        rows, following = await in_thread(selectors.layer_list, actor=actor, search=search, **asked)
        return page_response(request, [layer_json(row) for row in rows], following)
    made = await in_thread(apps.layer_create, wanted=layer_of(json_object(request)), actor=actor)
    return JsonResponse(layer_json(made), status=201)


@sdk_view("GET", "PATCH", "DELETE")
@sensitive_variables()
async def layer_view(request: HttpRequest, actor: Actor, layer: str) -> HttpResponse:
    """One layer, by id or slug."""
    row = await in_thread(selectors.layer_get, actor=actor, name=layer)
    if request.method == "DELETE":
        await in_thread(apps.layer_delete, layer=row, actor=actor)
        return HttpResponse(status=204)
    if request.method == "PATCH":
        row = await in_thread(apps.layer_update, layer=row, wanted=layer_of(json_object(request)), actor=actor)
    return JsonResponse(layer_json(row))


@sdk_view("GET")
async def layer_apps(request: HttpRequest, actor: Actor, layer: str) -> HttpResponse:
    """The apps that use it."""
    row = await in_thread(selectors.layer_get, actor=actor, name=layer)
    rows, following = await in_thread(selectors.layer_apps, actor=actor, layer=row, **page_asked(request))
    return page_response(request, [layer_app_json(use) for use in rows], following)
