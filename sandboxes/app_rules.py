"""What apps, layers and their variables may be called and hold; pure. It reads the JSON that clients send."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from django.views.decorators.debug import sensitive_variables

from sandboxes import quotas
from sandboxes.errors import Invalid

APPS = LAYERS = 200
"""How many of each an organization may have."""
VARIABLES = 256
"""Variables of an app or a layer."""
USED_LAYERS = 16
"""Layers in one list."""
NAME_BYTES, VALUE_BYTES = 128, 16 * 1024
CONFIG_BYTES = 16 * 1024
DESCRIPTION = 1000
CONTEXTS = 16
FRAMEWORKS = (
    *("", "nextjs", "astro", "nuxt", "remix", "solidstart", "tanstackstart"),
    *("sveltekit", "fresh", "lume"),
)
RESERVED = ("DENO_", "LD_", "OTEL_")
ALLOWED = frozenset({"DENO_AUTH_TOKENS", "DENO_COMPAT", "DENO_CONDITIONS", "DENO_DEPLOY_ENDPOINT", "DENO_DEPLOY_TOKEN"})
"""Names that may be set although they begin with what is reserved."""
RETENTIONS = ("auto", "indefinite")
_SLUG = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTEXT = re.compile(r"[a-z0-9][a-z0-9/_.-]{0,63}")

_CONFIG: dict[str, tuple[type, ...]] = {
    "install": (str, type(None)),
    "build": (str, type(None)),
    "framework": (str,),
    "predeploy": (str, type(None)),
    "crons": (bool,),
    "runtime": (dict,),
}
_RUNTIME: dict[str, dict[str, tuple[type, ...]]] = {
    "dynamic": {"type": (str,), "entrypoint": (str,), "args": (list,), "cwd": (str,)},
    "static": {"type": (str,), "cwd": (str,), "spa": (bool,)},
}
_NEEDED = {"dynamic": "entrypoint", "static": "cwd"}


@dataclass(frozen=True, slots=True)
class WantedVariable:
    """A variable to make, or a change of the one with that `id`, or else that `name`. None: as it is, or the default.

    `contexts` "all" or names.
    """

    id: str | None = None
    name: str | None = None
    value: str | None = field(default=None, repr=False)
    secret: bool | None = None
    contexts: str | Sequence[str] | None = None
    delete: bool = False


@dataclass(frozen=True, slots=True)
class WantedApp:
    """What an app is to be; None: as it is, or the default. `layers` are ids or slugs, the first goes before others."""

    slug: str | None = None
    labels: Mapping[str, str] | None = None
    layers: Sequence[str] | None = None
    variables: Sequence[WantedVariable] = ()
    config: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class WantedLayer:
    """What a layer is to be; as `WantedApp`."""

    slug: str | None = None
    description: str | None = None
    layers: Sequence[str] | None = None
    variables: Sequence[WantedVariable] = ()


@sensitive_variables("body")
def app_of(body: Mapping[str, object]) -> WantedApp:
    """From a client's JSON, unknown keys left out. Invalid."""
    labels = body.get("labels")
    if labels is not None:
        if not isinstance(labels, dict) or not all(isinstance(one, str) for one in labels.values()):
            raise Invalid("labels are an object of texts", field="labels")
        quotas.check_labels(labels)
    config = body.get("config")
    return WantedApp(
        slug=_slug(body),
        labels=labels,
        layers=_layers(body),
        variables=_variables(body),
        config=None if config is None else check_config(config),
    )


@sensitive_variables("body")
def layer_of(body: Mapping[str, object]) -> WantedLayer:
    """From a client's JSON, unknown keys left out. Invalid."""
    description = body.get("description")
    if description is not None and (not isinstance(description, str) or len(description) > DESCRIPTION):
        raise Invalid(f"a description has at most {DESCRIPTION} characters", field="description")
    return WantedLayer(slug=_slug(body), description=description, layers=_layers(body), variables=_variables(body))


def check_config(config: object) -> Mapping[str, object]:
    """How an app is built and run. Invalid for unknown keys and wrong types, a framework beside a runtime, too much."""
    checked = _object(config, _CONFIG, "config")
    if len(json.dumps(config)) > CONFIG_BYTES:
        raise Invalid(f"config is longer than {CONFIG_BYTES} bytes", field="config")
    if checked.get("framework", "") not in FRAMEWORKS:
        raise Invalid(f"config.framework is one of {', '.join(FRAMEWORKS[1:])}, or empty", field="config")
    runtime = checked.get("runtime")
    if runtime is None:
        return checked
    if checked.get("framework"):
        raise Invalid("config has a framework or a runtime, not both", field="config")
    kind = runtime.get("type") if isinstance(runtime, dict) else None
    if not isinstance(kind, str) or kind not in _RUNTIME:
        raise Invalid("config.runtime.type is 'dynamic' or 'static'", field="config")
    known = _object(runtime, _RUNTIME[kind], "config.runtime")
    if _NEEDED[kind] not in known:
        raise Invalid(f"config.runtime of type {kind} needs {_NEEDED[kind]}", field="config")
    args = known.get("args", [])
    if not isinstance(args, list) or not all(isinstance(one, str) for one in args):
        raise Invalid("config.runtime.args is an array of texts", field="config")
    return checked


def check_name(name: str) -> None:
    """Invalid for what cannot be set."""
    if not _NAME.fullmatch(name) or len(name) > NAME_BYTES:
        raise Invalid(
            f"{name[:40]!r} cannot be the name of a variable: letters, digits and underscores, at most {NAME_BYTES}, "
            "not beginning with a digit",
            field="env_vars",
        )
    if name.startswith(RESERVED) and name not in ALLOWED:
        raise Invalid(f"{name}: names that begin with {', '.join(RESERVED)} are set by the server", field="env_vars")


@sensitive_variables("value")
def check_value(name: str, value: str) -> None:
    """Invalid says of which variable, and never what the value is."""
    if len(value.encode("utf-8", "surrogatepass")) > VALUE_BYTES or "\0" in value:
        raise Invalid(f"the value of {name} has a NUL, or more than {VALUE_BYTES} bytes", field="env_vars")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Invalid(f"the value of {name} is not valid Unicode text", field="env_vars") from None


def _slug(body: Mapping[str, object]) -> str | None:
    slug = body.get("slug")
    # Two hyphens part an app from a branch in a host name
    if slug is not None and (not isinstance(slug, str) or not _SLUG.fullmatch(slug) or "--" in slug):
        raise Invalid(
            "a slug has 2 to 40 of a-z, 0-9 and '-', no '-' at its begin or end, and no two in a row", field="slug"
        )
    return slug


def _layers(body: Mapping[str, object]) -> list[str] | None:
    layers = body.get("layers")
    if layers is None:
        return None
    if not isinstance(layers, list) or not all(isinstance(one, str) for one in layers) or len(layers) > USED_LAYERS:
        raise Invalid(f"layers are an array of at most {USED_LAYERS} ids or slugs", field="layers")
    return layers


@sensitive_variables()
def _variables(body: Mapping[str, object]) -> list[WantedVariable]:
    given = body.get("env_vars")
    if given is None:
        return []
    if not isinstance(given, list) or len(given) > 2 * VARIABLES:
        raise Invalid("env_vars is an array of objects", field="env_vars")
    return [_variable(one) for one in given]


@sensitive_variables()
def _variable(given: object) -> WantedVariable:
    kinds: dict[str, tuple[type, ...]] = {
        **dict.fromkeys(("id", "key", "value"), (str, type(None))),
        "secret": (bool, type(None)),
        "delete": (bool, type(None)),
        "contexts": (str, list, type(None)),
    }
    known = given if isinstance(given, dict) else {}
    if not isinstance(given, dict) or not all(isinstance(known.get(key), kind) for key, kind in kinds.items()):
        raise Invalid("an item of env_vars has a text as key and value, 'secret' and 'contexts'", field="env_vars")
    if known.get("id") is None and known.get("key") is None:
        raise Invalid("an item of env_vars has neither id nor key", field="env_vars")
    contexts = known.get("contexts")
    if contexts is not None and contexts != "all":
        named = contexts if isinstance(contexts, list) else []
        if not 1 <= len(named) <= CONTEXTS or not all(
            isinstance(one, str) and _CONTEXT.fullmatch(one) for one in named
        ):
            raise Invalid(f'contexts are "all" or an array of 1 to {CONTEXTS} names', field="env_vars")
        contexts = list(dict.fromkeys(named))
    if (name := known.get("key")) is not None:
        check_name(name)
    if (value := known.get("value")) is not None:
        check_value(name or "a variable", value)
    return WantedVariable(
        id=known.get("id"),
        name=name,
        value=value,
        secret=known.get("secret"),
        contexts=contexts,
        delete=bool(known.get("delete")),
    )


def _object(given: object, kinds: Mapping[str, tuple[type, ...]], where: str) -> Mapping[str, object]:
    if not isinstance(given, dict):
        raise Invalid(f"{where} is not an object", field="config")
    for key, value in given.items():
        if key not in kinds:
            raise Invalid(f"{where} has no {str(key)[:40]!r}: {', '.join(kinds)} may be given", field="config")
        if not isinstance(value, kinds[key]):
            raise Invalid(f"{where}.{key} is of the wrong type", field="config")
    return given
