"""The pages: each finds who asks and for which organization, and renders a frame; data comes over REST and events."""

from __future__ import annotations

from typing import Any, cast

from django.contrib.auth import login, logout
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.templatetags.static import static
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from ide.pages.forms import SignInForm
from sandboxes.errors import Forbidden, LinkUsed, NotFound
from sandboxes.models import Membership, User
from sandboxes.permissions import RULES, allows
from sandboxes.selectors.sandboxes import sandbox_get
from sandboxes.services import accounts

BACKEND = "django.contrib.auth.backends.ModelBackend"
CHOSEN = "organization"


def _frame(request: HttpRequest, island: str, membership: Membership, **config: Any) -> dict[str, Any]:
    """What every signed-in page shows and tells its scripts."""
    user = cast(User, request.user)
    actor = accounts.actor_of(user=user, membership=membership)
    organization = membership.organization
    memberships = user.memberships.select_related("organization").order_by("organization__name")
    return {
        "island": island,
        "membership": membership,
        "memberships": list(memberships),
        "config": {
            "island": island,
            "organization": {"slug": organization.slug, "name": organization.name},
            "may": [action for action in RULES if allows(actor, action, organization.pk)],
            "you": user.email,
            "role": membership.role,
            "origin": f"{request.scheme}://{request.get_host()}",
            **config,
        },
    }


def _membership(request: HttpRequest) -> Membership | None:
    """In the organization chosen in this session, else in the first one joined."""
    mine = cast(User, request.user).memberships.select_related("organization")
    chosen = mine.filter(organization__slug=request.session.get(CHOSEN, "")).first()
    return chosen or mine.order_by("created_at", "pk").first()


def _page(request: HttpRequest, template: str, island: str) -> HttpResponse:
    membership = _membership(request)
    if membership is None:
        return render(request, "account/nowhere.html", status=403)
    return render(request, template, _frame(request, island, membership))


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
def members(request: HttpRequest) -> HttpResponse:
    """Who belongs to the organization."""
    return _page(request, "account/members.html", "members")


@login_required
@never_cache
@require_GET
def workspace(request: HttpRequest, sandbox: str) -> HttpResponse:
    """One sandbox in the IDE, in whichever of the person's organizations it is."""
    user = cast(User, request.user)
    for membership in user.memberships.select_related("organization"):
        try:
            found = sandbox_get(
                actor=accounts.actor_of(user=user, membership=membership), public_id=sandbox, action="sandbox.use"
            )
        except NotFound:
            continue
        except Forbidden:
            return render(request, "403.html", {"reason": "Viewers see sandboxes but do not enter them."}, status=403)
        return render(
            request,
            "ide/workspace.html",
            {"sandbox": found, **_frame(request, "workspace", membership, sandbox=found.public_id)},
        )
    raise Http404("There is no such sandbox, or it is not in an organization of yours.")


@login_required
@require_POST
def switch_organization(request: HttpRequest) -> HttpResponse:
    """Look at another of one's organizations from now on."""
    slug = request.POST.get("organization", "")
    if not cast(User, request.user).memberships.filter(organization__slug=slug).exists():
        raise Http404("You are not a member of that organization.")
    request.session[CHOSEN] = slug
    return redirect("pages:dashboard")


@sensitive_post_parameters("password")
@never_cache
@require_http_methods(["GET", "POST"])
def sign_in(request: HttpRequest) -> HttpResponse:
    """Email and password; a sign-in link is the other way in."""
    wanted = request.POST.get("next", request.GET.get("next", ""))
    target = (
        wanted
        if url_has_allowed_host_and_scheme(wanted, {request.get_host()}, require_https=request.is_secure())
        else "/"
    )
    if request.user.is_authenticated:
        return redirect(target)
    form = SignInForm(request, request.POST or None)
    if request.method == "POST" and form.is_valid() and form.user is not None:
        login(request, form.user, backend=BACKEND)
        return redirect(target)
    return render(request, "account/sign_in.html", {"form": form, "next": target}, status=400 if form.errors else 200)


@never_cache
@require_http_methods(["GET", "POST"])
def sign_in_link(request: HttpRequest, secret: str) -> HttpResponse:
    """A one-time link: looking at it uses nothing up (mail scanners look), the button signs in."""
    if request.method == "POST":
        try:
            user = accounts.sign_in_link_use(secret=secret)
        except LinkUsed:
            return render(request, "account/sign_in_link.html", {"valid": False}, status=410)
        login(request, user, backend=BACKEND)
        return redirect("pages:dashboard")
    valid = accounts.sign_in_link_valid(secret=secret)
    if not valid and request.user.is_authenticated:
        return redirect("pages:dashboard")
    return render(request, "account/sign_in_link.html", {"valid": valid}, status=200 if valid else 410)


@require_POST
def sign_out(request: HttpRequest) -> HttpResponse:
    """End this session."""
    logout(request)
    return redirect("pages:sign_in")


@require_GET
def favicon(request: HttpRequest) -> HttpResponse:
    """The icon, for browsers that ask for it by its old name."""
    return redirect(static("icon.svg"))
