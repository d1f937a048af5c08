"""Every HTTP path: REST, what the SDKs call, and the pages."""

from __future__ import annotations

from django.urls import URLPattern, URLResolver, include, path

from ide.api import sdk
from ide.api.v1 import api

urlpatterns: list[URLPattern | URLResolver] = [
    path("healthz", sdk.health),
    path("api/v1/", api.urls),
    path("api/v2/sandboxes", sdk.sandboxes),
    path("api/v3/sandboxes", sdk.sandboxes),
    path("api/v3/sandboxes/<str:sandbox>", sdk.sandbox),
    path("api/v3/sandbox/<str:sandbox>", sdk.sandbox),
    path("", include("ide.pages.urls")),
]
