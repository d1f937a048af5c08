"""The pages of an organization's things: each finds who asks and renders a frame; data comes over REST and events."""

from __future__ import annotations

from typing import cast

from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.templatetags.static import static
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from ide.pages.frame import frame, membership_of, nowhere
from sandboxes.config import config
from sandboxes.errors import Forbidden, NotFound
from sandboxes.models import User
from sandboxes.selectors.sandboxes import sandbox_get
from sandboxes.services import accounts


def _page(request: HttpRequest, template: str, island: str) -> HttpResponse:
    membership = membership_of(request)
    if membership is None:
        return nowhere(request)
    return render(request, template, frame(request, island, membership))


@login_required
@never_cache
@require_GET
def dashboard(request: HttpRequest) -> HttpResponse:
    """The organization's sandboxes, live."""
    return _page(request, "dashboard/dashboard.html", "dashboard")


@login_required
@never_cache
@require_GET
def tokens(request: HttpRequest) -> HttpResponse:
    """API tokens."""
    return _page(request, "account/tokens.html", "tokens")


@login_required
@never_cache
@require_GET
def secrets(request: HttpRequest) -> HttpResponse:
    """The organization's secrets, without their values."""
    return _page(request, "account/secrets.html", "secrets")


@login_required
@never_cache
@require_GET
def volumes(request: HttpRequest) -> HttpResponse:
    """Disks that outlive sandboxes."""
    return _page(request, "account/volumes.html", "volumes")


@login_required
@never_cache
@require_GET
def snapshots(request: HttpRequest) -> HttpResponse:
    """What volumes and sandboxes held at some moment."""
    return _page(request, "account/snapshots.html", "snapshots")


@login_required
@never_cache
@require_GET
def api_docs(request: HttpRequest) -> HttpResponse:
    """REST, read and tried out: Swagger UI of our own static files in a page of ours."""
    membership = membership_of(request)
    if membership is None:
        return nowhere(request)
    docs = {
        "schema": reverse("api-v1:openapi-json"),
        "script": static("ninja/swagger-ui-bundle.js"),
        "styles": static("ninja/swagger-ui.css"),
    }
    return render(request, "account/api.html", frame(request, "api", membership, docs=docs))


@login_required
@never_cache
@require_GET
def members(request: HttpRequest) -> HttpResponse:
    """Who belongs to the organization."""
    return _page(request, "account/members.html", "members")


@login_required
@never_cache
@require_GET
def usage(request: HttpRequest) -> HttpResponse:
    """What the organization uses, and what it costs."""
    return _page(request, "account/usage.html", "usage")


@login_required
@never_cache
@require_GET
def workspace(request: HttpRequest, sandbox: str) -> HttpResponse:
    """One sandbox in the IDE, in whichever of the person's organizations it is."""
    try:
        return _sandbox_page(request, sandbox, "sandbox.use", "ide/workspace.html", "workspace")
    except Forbidden:
        return render(request, "403.html", {"reason": "Viewers see sandboxes but do not enter them."}, status=403)


@login_required
@never_cache
@require_GET
def details(request: HttpRequest, sandbox: str) -> HttpResponse:
    """What is known of one sandbox and its life so far, for every member; of a deleted one while it can be restored."""
    return _sandbox_page(request, sandbox, "sandbox.view", "dashboard/details.html", "details")


def _sandbox_page(request: HttpRequest, sandbox: str, action: str, template: str, island: str) -> HttpResponse:
    """A page of one sandbox, for whoever may do `action` with it. Forbidden; 404 outside of his organizations."""
    user = cast(User, request.user)
    for membership in user.memberships.select_related("organization"):
        actor = accounts.actor_of(user=user, membership=membership)
        try:
            found = sandbox_get(actor=actor, public_id=sandbox, action=action, restorable=island == "details")
        except NotFound:
            continue
        usual = {name: config()[name] for name in ("idle_minutes", "checkpoint_minutes")}
        shown = frame(request, island, membership, sandbox=found.public_id, **usual)
        return render(request, template, {"sandbox": found, **shown})
    raise Http404("There is no such sandbox, or it is not in an organization of yours.")


@require_GET
def favicon(request: HttpRequest) -> HttpResponse:
    """The icon, for browsers that ask for it by its old name."""
    return redirect(static("icon.svg"))
