"""`/api/v1/device`: a program asks to be let in, and asks again until its person has answered."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django.http import HttpRequest
from django.urls import reverse
from ninja import Router, Status

from ide.api.schemas import DeviceAnswer, DeviceLoginIn, DeviceLoginOut, DeviceSecret, Problem
from sandboxes.database import in_thread
from sandboxes.services import device_logins

router = Router(tags=["device login"], auth=None)


@router.post("/login", response={201: DeviceLoginOut, 429: Problem})
async def begin(request: HttpRequest, body: DeviceLoginIn) -> Any:
    """Begin: show the person `user_code` and `url`, and ask for the token with `secret` from then on."""
    login, secret = await in_thread(device_logins.device_login_begin, client_name=body.client_name)
    # Where the program has reached us its person does as well
    url = request.build_absolute_uri(reverse("pages:device"))
    return Status(
        201,
        {
            "secret": secret,
            "user_code": login.user_code,
            "url": url,
            "url_with_code": f"{url}?{urlencode({'code': login.user_code})}",
            "expires_in": int(device_logins.LIFETIME.total_seconds()),
            "interval": device_logins.INTERVAL_SECONDS,
        },
    )


@router.post("/token", response={200: DeviceAnswer})
async def take(request: HttpRequest, body: DeviceSecret) -> dict[str, Any]:
    """What became of it. The token of one that was granted is told once."""
    answer = await in_thread(device_logins.device_login_take, secret=body.secret.get_secret_value())
    return {"state": answer.state, "token": answer.secret or None, "organization": answer.organization or None}
