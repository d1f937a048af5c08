"""The JSON of apps, layers, revisions and timelines under `/api/v1/`."""

from __future__ import annotations

from typing import Any, Literal

from ninja import Schema


class AppName(Schema):
    """Which app or layer."""

    id: str
    slug: str


class VariableOut(Schema):
    """A variable; `value` is absent from secret ones. `contexts`: "all", or names such as production and build."""

    id: str
    key: str
    value: str | None = None
    secret: bool
    contexts: Literal["all"] | list[str]


class VariableIn(Schema):
    """A variable to add, or to change: the one with this `id`, or else this `key`. What is absent stays."""

    id: str | None = None
    key: str | None = None
    value: str | None = None
    secret: bool | None = None
    contexts: Literal["all"] | list[str] | None = None
    delete: bool | None = None


class AppOut(AppName):
    """An app. `config`: how it is to be built and run, as it was given."""

    labels: dict[str, str]
    layers: list[AppName]
    env_vars: list[VariableOut]
    config: dict[str, Any]
    created_at: str
    updated_at: str


class AppIn(Schema):
    """What an app is to be. In a change what is absent stays, `env_vars` are merged and everything else is replaced."""

    slug: str | None = None
    labels: dict[str, str] | None = None
    layers: list[str] | None = None
    env_vars: list[VariableIn] | None = None
    config: dict[str, Any] | None = None


class AppPage(Schema):
    """Some of them; `next` is the cursor of those that follow."""

    items: list[AppOut]
    next: str | None


class LayerOut(AppName):
    """A layer. `app_count`: apps that use it by themselves."""

    description: str
    layers: list[AppName]
    env_vars: list[VariableOut]
    app_count: int
    created_at: str
    updated_at: str


class LayerIn(Schema):
    """What a layer is to be; as `AppIn`."""

    slug: str | None = None
    description: str | None = None
    layers: list[str] | None = None
    env_vars: list[VariableIn] | None = None


class LayerPage(Schema):
    """Some of them; `next` is the cursor of those that follow."""

    items: list[LayerOut]
    next: str | None


class LayerApp(AppName):
    """An app that uses a layer, and where in its list."""

    layer_position: int


class LayerAppPage(Schema):
    """Some of them; `next` is the cursor of those that follow."""

    items: list[LayerApp]
    next: str | None


class RevisionOut(Schema):
    """One state of an app that was deployed or is to be."""

    id: str
    status: Literal["queued", "building", "skipped", "succeeded", "failed"]
    failure_reason: str | None
    labels: dict[str, str]
    layers: list[AppName]
    env_vars: list[VariableOut]
    config: dict[str, Any]
    created_at: str
    cancellation_requested_at: str | None
    build_finished_at: str | None
    deleted_at: str | None
    retention: Literal["auto"]


class RevisionPage(Schema):
    """Some of them; `next` is the cursor of those that follow."""

    items: list[RevisionOut]
    next: str | None


class Context(Schema):
    """What variables of a timeline are for."""

    slug: str


class Domain(Schema):
    """Where a timeline is reached."""

    domain: str


class DeployTimelineOut(Schema):
    """A line of revisions of which one is active."""

    slug: str
    partition: dict[str, str]
    app: AppName
    context: Context
    domains: list[Domain]


class DeployTimelinePage(Schema):
    """Some of them; `next` is the cursor of those that follow."""

    items: list[DeployTimelineOut]
    next: str | None
