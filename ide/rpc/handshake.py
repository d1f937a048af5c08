"""What an SDK says when it connects: its config, its kind, its idea of a lifetime. Pure."""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sandboxes.errors import Invalid
from sandboxes.quotas import DEFAULT_MEMORY_MB
from sandboxes.secret_rules import WantedSecret
from sandboxes.services.mounts import WantedMount


class Dialect(StrEnum):
    """Which SDK is on the line; a handful of results differ."""

    JS = "js"
    PY = "py"


@dataclass(frozen=True, slots=True)
class Config:
    """The config header, checked for form; what its values may be is the domain's to say."""

    memory_mb: int
    labels: dict[str, str]
    env: dict[str, str]
    allow_net: list[str] | None
    secrets: list[WantedSecret]
    session: bool
    stop_at: datetime | None
    unlimited: bool
    volumes: list[WantedMount]
    root: str
    dialect: Dialect | None


def dialect_of(*, user_agent: str | None, config: Dialect | None = None) -> Dialect:
    """The SDK: by its user agent, else by its config's shape; without either it is JavaScript's."""
    if user_agent and "websockets/" in user_agent:
        return Dialect.PY
    if config is not None:
        return config
    return Dialect.JS


def decode_config(header: str, *, now: datetime) -> Config:
    """The config in a header value (Latin-1 text of base64). Invalid says what is wrong; unknown keys are ignored."""
    if not header:
        raise Invalid("the header x-deno-sandbox-config is missing", field="config")
    try:
        raw = base64.b64decode(header, validate=True)
    except (binascii.Error, ValueError):
        raise Invalid("the header x-deno-sandbox-config is not base64", field="config") from None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        # JavaScript's btoa sends U+0080 to U+00FF as single bytes.
        text = raw.decode("latin-1")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        raise Invalid("the header x-deno-sandbox-config does not hold JSON", field="config") from None
    if not isinstance(config, dict):
        raise Invalid("the config is not an object", field="config")
    session, stop_at, unlimited = _lifetime(config, now)
    return Config(
        memory_mb=_integer(config, "memory_mb", DEFAULT_MEMORY_MB),
        labels=_strings(config, "labels"),
        env=_strings(config, "env"),
        allow_net=_allow_net(config),
        secrets=_secrets(config),
        session=session,
        stop_at=stop_at,
        unlimited=unlimited,
        volumes=_volumes(config),
        root=_root(config),
        dialect=_dialect(config),
    )


def _root(config: dict[str, Any]) -> str:
    given = config.get("root")
    if not given:
        return ""
    if not isinstance(given, dict) or not isinstance(given.get("volume"), str):
        raise Invalid("'root' is not an object with 'volume', an id or slug", field="root")
    volume: str = given["volume"]
    return volume


def _volumes(config: dict[str, Any]) -> list[WantedMount]:
    """An array of objects from JavaScript, from Python an object of paths."""
    given = config.get("volumes") or []
    pairs: list[tuple[object, object]] = []
    if isinstance(given, dict):
        pairs = [(volume, path) for path, volume in given.items()]
    elif isinstance(given, list) and all(isinstance(one, dict) for one in given):
        pairs = [(one.get("volume"), one.get("path")) for one in given]
    found = [WantedMount(volume, path) for volume, path in pairs if isinstance(volume, str) and isinstance(path, str)]
    if not isinstance(given, dict | list) or len(found) != len(given):
        raise Invalid("'volumes' is neither an object of paths nor an array of volumes with paths", field="volumes")
    return found


def _dialect(config: dict[str, Any]) -> Dialect | None:
    volumes = config.get("volumes")
    if "debug" in config or "timeout" in config or isinstance(volumes, dict):
        return Dialect.PY
    if isinstance(volumes, list):
        return Dialect.JS
    return None


def _integer(config: dict[str, Any], key: str, default: int) -> int:
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise Invalid(f"{key!r} is not a whole number", field=key)
    return value


def _strings(config: dict[str, Any], key: str) -> dict[str, str]:
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise Invalid(f"{key!r} is not an object of strings", field=key)
    return dict(value)


def _allow_net(config: dict[str, Any]) -> list[str] | None:
    value = config.get("allow_net")
    if value is not None and (not isinstance(value, list) or not all(isinstance(item, str) for item in value)):
        raise Invalid("'allow_net' is not an array of strings", field="allow_net")
    return value


def _secrets(config: dict[str, Any]) -> list[WantedSecret]:
    given = config.get("secrets")
    if given is None:
        return []
    if not isinstance(given, dict):
        raise Invalid("'secrets' is not an object", field="secrets")
    found = []
    for name, secret in given.items():
        hosts = secret.get("hosts") if isinstance(secret, dict) else None
        value = secret.get("value") if isinstance(secret, dict) else None
        if (
            not isinstance(value, str)
            or not isinstance(hosts, list)
            or not all(isinstance(host, str) for host in hosts)
        ):
            raise Invalid(
                f"the secret {name[:40]!r} is not an object of 'hosts', an array of strings, and 'value', a string",
                field="secrets",
            )
        found.append(WantedSecret(name=name, value=value, hosts=hosts))
    return found


_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _lifetime(config: dict[str, Any], now: datetime) -> tuple[bool, datetime | None, bool]:
    """Whether it lives as long as its connection, else its deadline, and whether it is to have none."""
    if config.get("stop_at_ms") is not None:
        return False, moment(config["stop_at_ms"]), False
    timeout = config.get("timeout")
    if timeout is None or timeout == "session":
        return True, None, False
    if timeout == "unlimited":
        return False, None, True
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", timeout) if isinstance(timeout, str) else None
    seconds = int(found[1]) * _SECONDS[found[2]] if found else 0
    if seconds <= 0:
        raise Invalid(
            "a timeout is 'session', 'unlimited', or a time such as '30s', '5m', '2h' or '1d'", field="timeout"
        )
    return False, now + timedelta(seconds=seconds), False


def moment(stop_at_ms: object) -> datetime:
    """A time from epoch milliseconds. Invalid if it is no number, or beyond what a calendar has."""
    if isinstance(stop_at_ms, bool) or not isinstance(stop_at_ms, int | float):
        raise Invalid("'stop_at_ms' is not a number", field="stop_at_ms")
    try:
        return datetime.fromtimestamp(stop_at_ms / 1000, tz=UTC)
    except (ValueError, OverflowError, OSError):
        raise Invalid("'stop_at_ms' is not a time", field="stop_at_ms") from None


def shell_names(env: dict[str, str]) -> dict[str, str]:
    """Environment of a Python `spawn` with the names that client meant: it sends MY_VAR as MYVar.

    What arrived stays; the restored name is added where it is not there.
    """
    restored = dict(env)
    for key, value in env.items():
        if re.fullmatch(r"[A-Z][A-Za-z0-9]*", key) and not key.isupper():
            restored.setdefault(re.sub(r"(?<=[A-Z0-9a-z])(?=[A-Z][a-z])", "_", key).upper(), value)
    return restored
