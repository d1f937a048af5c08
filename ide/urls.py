"""Every HTTP path: REST, what the SDKs call, and the pages."""

from __future__ import annotations

from django.urls import URLPattern, URLResolver, include, path

from ide.api import sdk, sdk_apps, sdk_expose, sdk_volumes
from ide.api.v1 import api

urlpatterns: list[URLPattern | URLResolver] = [
    path("healthz", sdk.health),
    path("ca.pem", sdk_expose.authority),
    path("api/v1/", api.urls),
    path("api/v2/sandboxes", sdk.sandboxes),
    path("api/v2/volumes", sdk_volumes.volumes_view),
    path("api/v2/volumes/<str:volume>", sdk_volumes.volume_view),
    path("api/v2/volumes/<str:volume>/snapshot", sdk_volumes.volume_snapshot),
    path("api/v2/snapshots", sdk_volumes.snapshots_view),
    path("api/v2/snapshots/<str:snapshot>", sdk_volumes.snapshot_view),
    path("api/v2/sandboxes/<str:sandbox>/deploy", sdk_apps.sandbox_deploy),
    path("api/v2/apps", sdk_apps.apps_view),
    path("api/v2/apps/<str:app>", sdk_apps.app_view),
    path("api/v2/apps/<str:app>/revisions", sdk_apps.app_revisions),
    path("api/v2/apps/<str:app>/timelines", sdk_apps.app_timelines),
    path("api/v2/apps/<str:app>/deploy", sdk_apps.app_not_yet),
    path("api/v2/apps/<str:app>/logs", sdk_apps.app_not_yet),
    path("api/v2/revisions/<str:revision>", sdk_apps.revision_view),
    path("api/v2/revisions/<str:revision>/cancel", sdk_apps.revision_cancel),
    path("api/v2/revisions/<str:revision>/timelines", sdk_apps.revision_timelines),
    path("api/v2/revisions/<str:revision>/progress", sdk_apps.revision_not_yet),
    path("api/v2/revisions/<str:revision>/build_logs", sdk_apps.revision_not_yet),
    path("api/v2/layers", sdk_apps.layers_view),
    path("api/v2/layers/<str:layer>", sdk_apps.layer_view),
    path("api/v2/layers/<str:layer>/apps", sdk_apps.layer_apps),
    path("api/v3/sandboxes", sdk.sandboxes),
    path("api/v3/sandboxes/<str:sandbox>", sdk.sandbox),
    path("api/v3/sandbox/<str:sandbox>", sdk.sandbox),
    path("api/v3/sandbox/<str:sandbox>/expose/http", sdk_expose.http),
    path("api/v3/sandbox/<str:sandbox>/expose/ssh", sdk_expose.ssh),
    path("", include("ide.pages.urls")),
]
