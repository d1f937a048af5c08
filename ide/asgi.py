"""The ASGI application: HTTP to Django, WebSockets to the consumers behind the right guard."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ide.settings.base")

from django.core.asgi import get_asgi_application

http = get_asgi_application()

# After Django's set-up, because these modules import models.
from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402

from ide.auth import SameOrigin  # noqa: E402
from ide.consumers import routing  # noqa: E402

_pages = SameOrigin(AuthMiddlewareStack(URLRouter(routing.browser)))
_programs = URLRouter(routing.sdk)


async def websocket(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Cookies count only below /ws/, and only for our own pages."""
    await (_pages if scope["path"].startswith("/ws/") else _programs)(scope, receive, send)


application = ProtocolTypeRouter({"http": http, "websocket": websocket})
