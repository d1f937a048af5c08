"""Every WebSocket path."""

from __future__ import annotations

from typing import Any

from django.urls import re_path

from ide.consumers.events import EventsConsumer
from ide.consumers.rpc import BrowserSocket, ConnectSocket, CreateSocket, NoSocket
from ide.consumers.terminal import TerminalConsumer

SANDBOX = r"(?P<sandbox>sbx_[a-z]{3}_[0-9a-z]{20})"

# Opened by programs: a bearer token, and no origin.
sdk: list[Any] = [
    re_path(r"^api/v3/sandboxes/create$", CreateSocket.as_asgi()),
    re_path(r"^api/v3/sandbox/(?P<sandbox>[^/]{1,64})/connect$", ConnectSocket.as_asgi()),
    re_path(r"", NoSocket.as_asgi()),
]

# Opened by pages: session cookie, same origin.
browser: list[Any] = [
    re_path(r"^ws/events$", EventsConsumer.as_asgi()),
    re_path(rf"^ws/sandboxes/{SANDBOX}/rpc$", BrowserSocket.as_asgi()),
    re_path(rf"^ws/sandboxes/{SANDBOX}/terminal$", TerminalConsumer.as_asgi()),
    re_path(r"", NoSocket.as_asgi()),
]
