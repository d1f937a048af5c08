"""Paths of the pages."""

from __future__ import annotations

from django.urls import path

from ide.pages import views

app_name = "pages"

urlpatterns = [
    path("", views.dashboard, name="dashboard"),
    path("tokens", views.tokens, name="tokens"),
    path("members", views.members, name="members"),
    path("sandboxes/<str:sandbox>", views.workspace, name="workspace"),
    path("organization", views.switch_organization, name="switch_organization"),
    path("login", views.sign_in, name="sign_in"),
    path("login/<str:secret>", views.sign_in_link, name="sign_in_link"),
    path("logout", views.sign_out, name="sign_out"),
    path("favicon.ico", views.favicon),
]
