"""Paths of the pages."""

from __future__ import annotations

from django.urls import path

from ide.pages import account, organizations, views

app_name = "pages"

urlpatterns = [
    path("", views.dashboard, name="dashboard"),
    path("tokens", views.tokens, name="tokens"),
    path("secrets", views.secrets, name="secrets"),
    path("members", views.members, name="members"),
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
    path("password", account.password, name="password"),
    path("logout", account.sign_out, name="sign_out"),
    path("favicon.ico", views.favicon),
]
