"""Signing in and out, and one's own account."""

from __future__ import annotations

import time
from typing import cast

from django.contrib import messages
from django.contrib.auth import login, logout, update_session_auth_hash
from django.contrib.auth.decorators import login_required
from django.contrib.auth.forms import PasswordChangeForm, SetPasswordForm
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.html import format_html
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods, require_POST

from ide.pages.forms import SignInForm
from sandboxes.errors import LinkUsed
from sandboxes.models import User
from sandboxes.services import accounts

BACKEND = "django.contrib.auth.backends.ModelBackend"
LINKED = "linked"
"""The session's key for when a link began it: whoever forgot his password came in by one, and is not asked for it."""


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
        request.session[LINKED] = time.time()
        if not user.has_usable_password():
            hint = 'Your link is used up. <a href="{}">Set a password</a> to sign in again later.'
            messages.info(request, format_html(hint, reverse("pages:password")))
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


@login_required
@sensitive_post_parameters()
@never_cache
@require_http_methods(["GET", "POST"])
def password(request: HttpRequest) -> HttpResponse:
    """Set a password, or change it by the old one; this session goes on, every other one ends."""
    user = cast(User, request.user)
    linked = time.time() - request.session.get(LINKED, 0) < accounts.LINK_LIFETIME.total_seconds()
    kind = PasswordChangeForm if user.has_usable_password() and not linked else SetPasswordForm
    form = kind(user, request.POST or None)
    if request.method == "POST" and form.is_valid():
        accounts.password_set(user=user, password=form.cleaned_data["new_password1"])
        update_session_auth_hash(request, user)
        request.session.pop(LINKED, None)
        messages.success(request, "Your password is set. You are signed out everywhere but here.")
        return redirect("pages:dashboard")
    return render(request, "account/password.html", {"form": form}, status=400 if form.errors else 200)
