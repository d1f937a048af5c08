"""What SDKs say when they connect, read without I/O."""

from __future__ import annotations

import base64
import contextlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from ide.rpc import envelope
from ide.rpc.envelope import Malformed, Request, parse
from ide.rpc.handshake import Dialect, decode_config, dialect_of, shell_names
from sandboxes.errors import Invalid
from sandboxes.secret_rules import WantedSecret
from sandboxes.services.mounts import WantedMount

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def header(config: Any, encoding: str = "utf-8") -> str:
    return base64.b64encode(json.dumps(config, ensure_ascii=False).encode(encoding)).decode()


def test_defaults_of_both() -> None:
    """The two configs that the SDKs send when nothing was asked for."""
    js = decode_config(header({"memory_mb": 1280, "volumes": []}), now=NOW)
    py = decode_config(header({"memory_mb": 1280, "debug": False}), now=NOW)
    assert (js.dialect, js.session, js.stop_at, js.memory_mb) == (Dialect.JS, True, None, 1280)
    assert (py.dialect, py.session, py.stop_at, py.memory_mb) == (Dialect.PY, True, None, 1280)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_encodings(encoding: str) -> None:
    """UTF-8, and the single bytes that JavaScript's btoa makes."""
    assert decode_config(header({"labels": {"a": "é"}}, encoding), now=NOW).labels == {"a": "é"}


def test_secrets() -> None:
    """As both SDKs send them; the value is in no text that is made of the config."""
    given = {"API_KEY": {"hosts": ["a.example", "*.b.example:8443"], "value": "hunter2"}}
    config = decode_config(header({"secrets": given}), now=NOW)
    assert config.secrets == [
        WantedSecret(name="API_KEY", value="hunter2", hosts=["a.example", "*.b.example:8443"], places=())
    ]
    assert "hunter2" not in repr(config)
    assert decode_config(header({}), now=NOW).secrets == []
    with pytest.raises(Invalid) as refused:
        decode_config(header({"secrets": {"K": {"hosts": None, "value": "hunter2"}}}), now=NOW)
    assert "hunter2" not in refused.value.message


def test_lifetimes() -> None:
    """Absolute for JavaScript, text for Python; both end the sandbox whatever happens to its connection."""
    assert decode_config(header({"timeout": "session"}), now=NOW).session
    assert decode_config(header({"timeout": "90s"}), now=NOW).stop_at == NOW + timedelta(seconds=90)
    assert decode_config(header({"timeout": "5m"}), now=NOW).stop_at == NOW + timedelta(minutes=5)
    assert decode_config(header({"timeout": "2h"}), now=NOW).stop_at == NOW + timedelta(hours=2)
    assert decode_config(header({"timeout": "1d"}), now=NOW).stop_at == NOW + timedelta(days=1)
    unlimited = decode_config(header({"timeout": "unlimited"}), now=NOW)
    assert (unlimited.session, unlimited.stop_at, unlimited.unlimited) == (False, None, True)
    at = int((NOW + timedelta(minutes=1)).timestamp() * 1000)
    timed = decode_config(header({"stop_at_ms": at}), now=NOW)
    assert (timed.session, timed.stop_at) == (False, NOW + timedelta(minutes=1))


@pytest.mark.parametrize(
    "value",
    [
        "",
        "%%%",
        base64.b64encode(b"{").decode(),
        base64.b64encode(b"\xff\xfe").decode(),
        header([]),
        header({"timeout": "0s"}),
        header({"timeout": "1w"}),
        header({"timeout": "forever"}),
        header({"timeout": 5}),
        header({"timeout": "-5s"}),
        header({"stop_at_ms": "soon"}),
        header({"stop_at_ms": 1e300}),
        header({"memory_mb": "big"}),
        header({"memory_mb": True}),
        header({"env": ["x"]}),
        header({"env": {"A": 1}}),
        header({"labels": "x"}),
        header({"root": "x"}),
        header({"root": {"volume": 1}}),
        header({"volumes": ["v"]}),
        header({"volumes": [{"volume": "v"}]}),
        header({"volumes": [{"volume": 1, "path": "/p"}]}),
        header({"volumes": {"/p": 1}}),
        header({"volumes": "v"}),
        header({"secrets": [{"hosts": ["h"], "value": "v"}]}),
        header({"secrets": {"K": "v"}}),
        header({"secrets": {"K": {"value": "v"}}}),
        header({"secrets": {"K": {"hosts": "h", "value": "v"}}}),
        header({"secrets": {"K": {"hosts": [1], "value": "v"}}}),
        header({"secrets": {"K": {"hosts": ["h"], "value": 1}}}),
        "é",
    ],
)
def test_malformed_config(value: str) -> None:
    """Each is refused with a message; what is not available is not silently left out."""
    with pytest.raises(Invalid):
        decode_config(value, now=NOW)


def test_both_shapes_of_volumes() -> None:
    """JavaScript sends an array, Python an object by paths."""
    wanted = [WantedMount("v", "/p"), WantedMount("w", "/q")]
    array = [{"volume": "v", "path": "/p"}, {"volume": "w", "path": "/q"}]
    assert decode_config(header({"volumes": array}), now=NOW).volumes == wanted
    assert decode_config(header({"volumes": {"/p": "v", "/q": "w"}}), now=NOW).volumes == wanted
    assert decode_config(header({"volumes": None}), now=NOW).volumes == []


def test_root() -> None:
    """A volume or a snapshot, or nothing."""
    assert decode_config(header({"root": {"volume": "vol"}}), now=NOW).root == "vol"
    assert decode_config(header({"root": None}), now=NOW).root == decode_config(header({}), now=NOW).root == ""


def test_unknown_keys_are_ignored() -> None:
    """Later versions of the SDKs may say more."""
    assert decode_config(header({"new": 1, "region": "us-east-1", "ssh": True}), now=NOW).session


def test_allow_net_is_kept_as_it_is() -> None:
    """Absent and empty are two things: everything, and nothing. What is no array of strings is refused."""
    assert decode_config(header({}), now=NOW).allow_net is None
    assert decode_config(header({"allow_net": []}), now=NOW).allow_net == []
    assert decode_config(header({"allow_net": ["a.example:443"]}), now=NOW).allow_net == ["a.example:443"]
    for bad in ("a.example", [1], {"a": 1}):
        with pytest.raises(Invalid, match="allow_net"):
            decode_config(header({"allow_net": bad}), now=NOW)


def test_dialect() -> None:
    """The user agent decides, then the config, then it is JavaScript."""
    assert dialect_of(user_agent="Python/3.12 websockets/15", config=Dialect.JS) is Dialect.PY
    assert dialect_of(user_agent=None, config=Dialect.PY) is Dialect.PY
    assert dialect_of(user_agent=None) is Dialect.JS


def test_names_that_python_mangles() -> None:
    """The intended name is added; what arrived stays, and what is there already wins."""
    assert shell_names({"MYVar": "1"}) == {"MYVar": "1", "MY_VAR": "1"}
    assert shell_names({"NODEEnv": "1"})["NODE_ENV"] == "1"
    assert shell_names({"PATH": "x", "lower": "y"}) == {"PATH": "x", "lower": "y"}


@given(some.text())
def test_any_text_is_a_message_or_malformed(text: str) -> None:
    """Nothing a client sends raises anything else."""
    with contextlib.suppress(Malformed):
        assert parse(text)


@given(some.recursive(some.none() | some.booleans() | some.floats(allow_nan=False) | some.text(), some.lists))
def test_what_is_encoded_is_json(value: Any) -> None:
    """Every answer is valid JSON and valid UTF-8, lone surrogates included."""
    text = envelope.ok(0, value)
    assert json.loads(text.encode().decode())["result"]["ok"] == value


def test_request_id_zero() -> None:
    """JavaScript's first id."""
    assert parse('{"jsonrpc":"2.0","id":0,"method":"x"}') == Request(0, "x", {})


def test_error_objects_from_a_guest_are_made_safe() -> None:
    """A hostile guest's error cannot fail a client's validation."""
    made = envelope.error_object(
        {"constructorName": 5, "message": ["x"], "code": 7, "stack": None, "name": "n" * 99_999}
    )
    assert made["constructorName"] == "Error"
    assert "code" not in made
    assert len(made["name"]) == 10_000
    assert envelope.error_object("nonsense")["message"]
