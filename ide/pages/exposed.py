"""Lets a signed-in member into a port that is exposed to his organization."""

from __future__ import annotations

from typing import cast
from urllib.parse import urlencode

from django.contrib.auth.decorators import login_required
from django.core import signing
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from ide.gateway.access import ENTER, TICKET_SALT
from sandboxes.errors import NotFound
from sandboxes.models import User
from sandboxes.selectors.exposures import exposure_visited


@login_required
@never_cache
@require_GET
def exposed(request: HttpRequest, exposure: str) -> HttpResponse:
    """Send him on with a ticket that is good for a minute; the gateway gives him a cookie for it."""
    user = cast(User, request.user)
    try:
        found = exposure_visited(public_id=exposure, user=user)
    except NotFound as error:
        raise Http404(error.message) from error
    ticket = signing.dumps({"exposure": found.public_id, "user": user.pk}, salt=TICKET_SALT)
    query = urlencode({"ticket": ticket, "next": request.GET.get("next", "/")})
    return redirect(f"https://{found.domain}{ENTER}?{query}")
