"""An organization's settings, making a new one, and choosing among one's own."""

from __future__ import annotations

from typing import cast

from asgiref.sync import async_to_sync
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from ide.pages.forms import NetworkForm, NewOrganizationForm, OrganizationForm, SpendingForm, refused
from ide.pages.frame import CHOSEN, frame, membership_of, nowhere
from sandboxes.errors import DomainError, Forbidden
from sandboxes.models import Membership, User
from sandboxes.selectors.spending import spending_of
from sandboxes.services import accounts, limits, organizations
from sandboxes.services.egress import organization_network_set
from sandboxes.services.spending import spending_cap_set


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
    return _settings(request, membership, form=form)


@login_required
@require_POST
def spending(request: HttpRequest) -> HttpResponse:
    """What may be spent in a month; an owner sets it."""
    membership = _posted_membership(request)
    form = SpendingForm(request.POST)
    if form.is_valid():
        actor = accounts.actor_of(user=cast(User, request.user), membership=membership)
        try:
            spending_cap_set(actor=actor, cap=form.cleaned_data["spending_cap"])
        except Forbidden:
            return render(request, "403.html", {"reason": "Only an owner sets the spending cap."}, status=403)
        except DomainError as error:
            refused(form, error)
        else:
            request.session[CHOSEN] = membership.organization.slug
            messages.success(request, "The spending cap is set.")
            return redirect("pages:organization")
    return _settings(request, membership, cap_form=form)


@login_required
@require_POST
def network(request: HttpRequest) -> HttpResponse:
    """What new sandboxes reach, and what none of the organization ever does; who may edit it sets that."""
    membership = _posted_membership(request)
    form = NetworkForm(request.POST)
    if form.is_valid():
        actor = accounts.actor_of(user=cast(User, request.user), membership=membership)
        try:
            async_to_sync(organization_network_set)(actor=actor, allow_net=form.allowed(), deny_net=form.denied())
        except Forbidden:
            reason = "Only an owner or an administrator sets what sandboxes may reach."
            return render(request, "403.html", {"reason": reason}, status=403)
        except DomainError as error:
            refused(form, error)
        else:
            request.session[CHOSEN] = membership.organization.slug
            messages.success(request, "What sandboxes may reach is set.")
            return redirect("pages:organization")
    return _settings(request, membership, network_form=form)


def _settings(
    request: HttpRequest,
    membership: Membership,
    *,
    form: OrganizationForm | None = None,
    cap_form: SpendingForm | None = None,
    network_form: NetworkForm | None = None,
) -> HttpResponse:
    """The page with what was typed into one of its forms, and what is stored in the other."""
    organization = membership.organization
    shown = {
        "form": form or OrganizationForm(initial={"name": organization.name}),
        "cap_form": cap_form or SpendingForm(initial={"spending_cap": organization.spending_cap}),
        "network_form": network_form or NetworkForm.of(organization),
        "limits": limits.limits_shown(organization),
        "spending": spending_of(organization=organization),
        **frame(request, "organization", membership),
    }
    wrong = any(one is not None and one.errors for one in (form, cap_form, network_form))
    return render(request, "account/organization.html", shown, status=400 if wrong else 200)


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
