"""The page on which a person lets a program in that shows a code."""

from __future__ import annotations

from typing import cast

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from ide.pages.frame import membership_of, nowhere
from sandboxes.errors import NotFound
from sandboxes.models import User
from sandboxes.permissions import allows
from sandboxes.services import accounts, device_logins


@login_required
@never_cache
@require_http_methods(["GET", "POST"])
def device(request: HttpRequest) -> HttpResponse:
    """Ask for the code, show who waits with it, and take the answer; following a link decides nothing."""
    user = cast(User, request.user)
    membership = membership_of(request)
    if membership is None:
        return nowhere(request)
    organization = membership.organization
    actor = accounts.actor_of(user=user, membership=membership)
    if not allows(actor, "token.create_personal", organization.pk):
        reason = f"Viewers have no tokens, so no program can act as you in {organization.name}."
        return render(request, "403.html", {"reason": reason}, status=403)
    code = request.POST.get("code", request.GET.get("code", ""))
    shown = {"code": code, "organization": organization, "login": None, "done": "", "error": ""}
    try:
        if request.method == "POST":
            allowed = request.POST.get("answer") == "allow"
            shown["login"] = device_logins.device_login_decide(
                user_code=code, user=user, organization_id=organization.pk, allowed=allowed
            )
            shown["done"] = "allowed" if allowed else "denied"
        elif code:
            shown["login"] = device_logins.device_login_get(user_code=code)
    except NotFound as error:
        shown["error"] = error.message
    return render(request, "account/device.html", shown, status=404 if shown["error"] else 200)
