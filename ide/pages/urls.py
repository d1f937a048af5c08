"""Paths of the pages."""

from __future__ import annotations

from django.urls import path

from ide.pages import account, device, exposed, organizations, ssh_keys, views

app_name = "pages"

urlpatterns = [
    path("", views.dashboard, name="dashboard"),
    path("tokens", views.tokens, name="tokens"),
    path("secrets", views.secrets, name="secrets"),
    path("volumes", views.volumes, name="volumes"),
    path("snapshots", views.snapshots, name="snapshots"),
    path("members", views.members, name="members"),
    path("api-docs", views.api_docs, name="api_docs"),
    path("usage", views.usage, name="usage"),
    path("sandboxes/<str:sandbox>", views.workspace, name="workspace"),
    path("sandboxes/<str:sandbox>/details", views.details, name="details"),
    path("organization", organizations.settings, name="organization"),
    path("organization/spending", organizations.spending, name="spending"),
    path("organization/network", organizations.network, name="network"),
    path("organization/switch", organizations.switch, name="switch_organization"),
    path("organizations/new", organizations.create, name="new_organization"),
    path("login", account.sign_in, name="sign_in"),
    path("login/<str:secret>", account.sign_in_link, name="sign_in_link"),
    path("device", device.device, name="device"),
    path("password", account.password, name="password"),
    path("exposed/<str:exposure>", exposed.exposed, name="exposed"),
    path("ssh-keys", ssh_keys.ssh_key_page, name="ssh_keys"),
    path("logout", account.sign_out, name="sign_out"),
    path("favicon.ico", views.favicon),
]
