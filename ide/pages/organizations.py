"""An organization's settings, making a new one, and choosing among one's own."""

from __future__ import annotations

from typing import cast

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from ide.pages.forms import NewOrganizationForm, OrganizationForm, refused
from ide.pages.frame import CHOSEN, frame, membership_of, nowhere
from sandboxes.errors import DomainError, Forbidden
from sandboxes.models import Membership, User
from sandboxes.services import accounts, organizations


def _posted_membership(request: HttpRequest) -> Membership:
    """In the organization that the form names: another tab may have chosen another one since the page was opened."""
    mine = cast(User, request.user).memberships.select_related("organization")
    membership = mine.filter(organization__slug=request.POST.get("organization", "")).first()
    if membership is None:
        raise Http404("You are not a member of that organization.")
    return membership


@login_required
@never_cache
@require_http_methods(["GET", "POST"])
def settings(request: HttpRequest) -> HttpResponse:
    """What the organization is called; who may, renames it."""
    membership = _posted_membership(request) if request.method == "POST" else membership_of(request)
    if membership is None:
        return nowhere(request)
    form = OrganizationForm(request.POST or None, initial={"name": membership.organization.name})
    if request.method == "POST" and form.is_valid():
        actor = accounts.actor_of(user=cast(User, request.user), membership=membership)
        try:
            renamed = organizations.organization_rename(actor=actor, name=form.cleaned_data["name"])
        except Forbidden:
            reason = "Only an owner or an administrator renames an organization."
            return render(request, "403.html", {"reason": reason}, status=403)
        except DomainError as error:
            refused(form, error)
        else:
            request.session[CHOSEN] = renamed.slug
            messages.success(request, f"This organization is called {renamed.name} now.")
            return redirect("pages:organization")
    shown = {"form": form, **frame(request, "organization", membership)}
    return render(request, "account/organization.html", shown, status=400 if form.errors else 200)


@login_required
@never_cache
@require_http_methods(["GET", "POST"])
def create(request: HttpRequest) -> HttpResponse:
    """A new organization, owned by whoever makes it."""
    form = NewOrganizationForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            made = organizations.organization_create(user=cast(User, request.user), **form.cleaned_data)
        except DomainError as error:
            refused(form, error)
        else:
            request.session[CHOSEN] = made.slug
            messages.success(request, f"{made.name} is ready, and you own it. Invite others on its members page.")
            return redirect("pages:dashboard")
    return render(request, "account/organization_new.html", {"form": form}, status=400 if form.errors else 200)


@login_required
@require_POST
def switch(request: HttpRequest) -> HttpResponse:
    """Look at another of one's organizations from now on."""
    request.session[CHOSEN] = _posted_membership(request).organization.slug
    return redirect("pages:dashboard")
