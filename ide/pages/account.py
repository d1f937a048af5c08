"""Signing in and out, and one's own account."""

from __future__ import annotations

from django.contrib.auth import login, logout
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST

from ide.pages.forms import SignInForm
from sandboxes.errors import LinkUsed
from sandboxes.services import accounts

BACKEND = "django.contrib.auth.backends.ModelBackend"


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
