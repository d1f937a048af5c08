"""Apps, layers, revisions and timelines as JSON, the same for the SDKs and under `/api/v1/`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sandboxes.events import timestamp
from sandboxes.models import App, AppVariable, DeployTimeline, Layer, LayerUse, Revision

type Json = dict[str, Any]


def app_json(row: App) -> Json:
    """An app."""
    return {
        "id": row.public_id,
        "slug": row.slug,
        "labels": row.labels,
        "layers": _layers(row.layer_uses.all()),
        "env_vars": _variables(row.variables.all()),
        "config": row.config,
        "created_at": timestamp(row.created_at),
        "updated_at": timestamp(row.updated_at),
    }


def layer_json(row: Layer) -> Json:
    """A layer, as the selectors read it."""
    return {
        "id": row.public_id,
        "slug": row.slug,
        "description": row.description,
        "layers": _layers(row.layer_uses.all()),
        "env_vars": _variables(row.variables.all()),
        "app_count": row.app_count,  # type: ignore[attr-defined]
        "created_at": timestamp(row.created_at),
        "updated_at": timestamp(row.updated_at),
    }


def layer_app_json(use: LayerUse) -> Json:
    """An app that uses a layer, with its position there."""
    return {**_named(use.app), "layer_position": use.position}


def revision_json(row: Revision) -> Json:
    """A revision. What is deleted is not shown, so `deleted_at` is always null."""
    return {
        "id": row.public_id,
        "status": row.status,
        "failure_reason": row.failure_reason or None,
        "labels": row.labels,
        "layers": _layers(row.layer_uses.all()),
        "env_vars": _variables(row.variables.all()),
        "config": row.config,
        "created_at": timestamp(row.created_at),
        "cancellation_requested_at": timestamp(row.cancellation_requested_at),
        "build_finished_at": timestamp(row.build_finished_at),
        "deleted_at": None,
        "retention": "auto",
    }


def timeline_json(row: DeployTimeline) -> Json:
    """A timeline of an app."""
    return {
        "slug": row.slug,
        "partition": row.partition,
        "app": _named(row.app),
        "context": {"slug": row.context},
        "domains": [{"domain": domain} for domain in row.domains],
    }


def _layers(uses: Iterable[LayerUse]) -> list[Json]:
    return [_named(use.layer) for use in uses]


def _named(row: App | Layer | None) -> Json:
    return {} if row is None else {"id": row.public_id, "slug": row.slug}


def _variables(rows: Iterable[AppVariable]) -> list[Json]:
    return [_variable(row) for row in rows]


def _variable(row: AppVariable) -> Json:
    # Without the key, and not with null: so clients tell a secret one
    value = {} if row.secret else {"value": row.value}
    contexts = "all" if row.contexts is None else row.contexts
    return {"id": row.public_id, "key": row.name, **value, "secret": row.secret, "contexts": contexts}
