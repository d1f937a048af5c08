"""One's own keys for SSH."""

from __future__ import annotations

import contextlib
from typing import cast

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from ide.pages.forms import SshKeyForm, refused
from ide.pages.frame import frame, membership_of, nowhere
from sandboxes.errors import DomainError, NotFound
from sandboxes.models import User
from sandboxes.services import accounts, ssh_keys
from sandboxes.services.exposures import ssh_address


@login_required
@never_cache
@require_http_methods(["GET", "POST"])
def ssh_key_page(request: HttpRequest) -> HttpResponse:
    """The keys, with a form for another one; `remove` names one that goes."""
    membership = membership_of(request)
    if membership is None:
        return nowhere(request)
    actor = accounts.actor_of(user=cast(User, request.user), membership=membership)
    form = SshKeyForm(request.POST if request.method == "POST" and "remove" not in request.POST else None)
    if "remove" in request.POST:
        # Another tab may have been faster
        with contextlib.suppress(NotFound, ValueError):
            ssh_keys.ssh_key_remove(actor=actor, key_id=int(request.POST["remove"]))
        messages.success(request, "The key is removed: it logs in no more.")
        return redirect("pages:ssh_keys")
    if request.method == "POST" and form.is_valid():
        try:
            added = ssh_keys.ssh_key_add(actor=actor, **form.cleaned_data)
        except DomainError as error:
            refused(form, error)
        else:
            messages.success(request, f"{added.name} logs in now.")
            return redirect("pages:ssh_keys")
    context = frame(request, "ssh_keys", membership)
    shown = {"form": form, "keys": ssh_keys.ssh_key_list(actor=actor), "address": ssh_address()}
    return render(request, "account/ssh_keys.html", {**context, **shown}, status=400 if form.errors else 200)
