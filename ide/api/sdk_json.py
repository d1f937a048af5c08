"""Bodies and pages of lists, as the SDKs' plain HTTP calls have them."""

from __future__ import annotations

import json
from typing import Any, TypedDict
from urllib.parse import parse_qs, urlencode, urlsplit

from django.http import HttpRequest, HttpResponse, JsonResponse

from sandboxes.config import config
from sandboxes.errors import Invalid
from sandboxes.selectors.pages import PAGE


class Asked(TypedDict):
    """Which page of a list."""

    limit: int
    cursor: str


def json_object(request: HttpRequest) -> dict[str, Any]:
    """The body. Invalid unless it is a JSON object."""
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Invalid("the body is not a JSON object")
    return body


def page_asked(request: HttpRequest) -> Asked:
    """Which page the request is for. Invalid."""
    text = request.GET.get("limit", "")
    if text and not (text.isdecimal() and len(text) < 6):
        raise Invalid("limit is not a number", field="limit")
    # The Python SDK sends the whole address of the next page, beside the cursor that it began with
    cursor = (request.GET.getlist("cursor") or [""])[-1]
    if "/" in cursor:
        try:
            cursor = (parse_qs(urlsplit(cursor).query).get("cursor") or [""])[-1]
        except ValueError:
            raise Invalid("the cursor is none that this list gave", field="cursor") from None
    return {"limit": int(text) if text else PAGE, "cursor": cursor}


def page_response(request: HttpRequest, items: list[dict[str, Any]], following: str) -> HttpResponse:
    """A page, with the address of the one that follows where there is one."""
    response = JsonResponse(items, safe=False)
    if following:
        origin = config()["origin"].rstrip("/")
        response["Link"] = f'<{origin}{request.path}?{urlencode({"cursor": following})}>; rel="next"'
    return response
