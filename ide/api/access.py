"""Who is asking, for every HTTP call: a bearer token, else the session's person with Django's CSRF check."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import CsrfViewMiddleware

from ide.auth import bearer
from sandboxes.errors import Forbidden, NotAuthenticated
from sandboxes.models import User
from sandboxes.permissions import Actor
from sandboxes.services import accounts, tokens

# What follows the check is none of its business: it only looks at the request.
_csrf = CsrfViewMiddleware(lambda request: None)  # type: ignore[arg-type]


def _nothing(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


def actor_of_request(request: HttpRequest) -> Actor:
    """The actor. InvalidToken, NotAuthenticated; Forbidden for a page's request without its CSRF token."""
    # A download is a plain link, which cannot carry a header.
    organization = request.headers.get("X-Deno-Org") or request.GET.get("organization", "")
    authorization = request.headers.get("Authorization", "")
    if authorization:
        return tokens.token_actor(secret=bearer(authorization), organization=organization)
    if not isinstance(request.user, User):
        raise NotAuthenticated
    if request.method not in ("GET", "HEAD", "OPTIONS"):
        _csrf.process_request(request)
        if _csrf.process_view(request, _nothing, (), {}) is not None:
            raise Forbidden("the request's CSRF token is missing or wrong")
    return accounts.actor_for_user(user=request.user, organization=organization)
