"""What a secret may be: each bound with both of its sides, and no refusal tells a value."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from sandboxes.errors import Invalid, QuotaExceeded
from sandboxes.secret_rules import WantedSecret, check_room, check_secret
from vm.egress.secrets import MAX_VALUE

GOOD = WantedSecret(name="API_KEY", value="hunter2hunter2", hosts=["api.example.com"])


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"name": "_"},
        {"name": "a" * 128},
        {"value": "x"},
        {"value": "x" * MAX_VALUE},
        {"value": "ü\tx"},
        {"value": "two\nlines", "places": ["body"]},
        {"hosts": ["*.example.com:8443", "bücher.example", "UPPER.example."]},
        {"places": ["query", "path", "body"]},
        {"labels": {"team": "sea"}},
    ],
)
def test_good(change: dict[str, Any]) -> None:
    check_secret(replace(GOOD, **change))


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ({"name": ""}, "name", "environment variable"),
        ({"name": "1A"}, "name", "environment variable"),
        ({"name": "A-B"}, "name", "environment variable"),
        ({"name": "A=B"}, "name", "environment variable"),
        ({"name": "A\n"}, "name", "environment variable"),
        ({"name": "a" * 129}, "name", "environment variable"),
        ({"value": ""}, "value", "0 bytes"),
        ({"value": "x" * (MAX_VALUE + 1)}, "value", "65537 bytes"),
        ({"value": "ü" * MAX_VALUE}, "value", "131072 bytes"),
        ({"value": "a\0b"}, "value", "NUL"),
        ({"value": "a\r\nb"}, "value", "line break"),
        ({"value": "\ud800"}, "value", "Unicode"),
        ({"hosts": []}, "hosts", "at least one"),
        ({"hosts": ["a.example"] * 65}, "hosts", "at most 64"),
        ({"hosts": ["https://a.example"]}, "hosts", "a URL"),
        ({"hosts": ["*"]}, "hosts", "a star"),
        ({"hosts": ["10.0.0.1"]}, "hosts", "is an address"),
        ({"hosts": ["[2001:db8::1]:443"]}, "hosts", "is an address"),
        ({"places": ["cookie"]}, "places", "any of path, query, body"),
        ({"places": ["path", "path"]}, "places", "each once"),
        ({"labels": {"": "x"}}, "labels", "label key"),
    ],
)
def test_refused(change: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(Invalid, match=said) as refused:
        check_secret(replace(GOOD, **change))
    assert refused.value.fields["field"] == field


@given(some.text(min_size=4, max_size=200))
def test_no_refusal_tells_the_value(value: str) -> None:
    """Whatever is wrong with it, or with the rest."""
    marked = f"s3cr3t{value}"
    for wanted in (replace(GOOD, value=f"{marked}\0"), replace(GOOD, value=marked, hosts=[])):
        with pytest.raises(Invalid) as refused:
            check_secret(wanted)
        assert "s3cr3t" not in refused.value.message
    assert "s3cr3t" not in repr(replace(GOOD, value=marked))


def test_room() -> None:
    check_room(count=50, size=128 * 1024, of_sandbox=True)
    check_room(count=100, size=0, of_sandbox=False)
    with pytest.raises(QuotaExceeded, match="at most 50"):
        check_room(count=51, size=0, of_sandbox=True)
    with pytest.raises(QuotaExceeded, match="at most 100"):
        check_room(count=101, size=0, of_sandbox=False)
    with pytest.raises(QuotaExceeded, match="131073 bytes together"):
        check_room(count=1, size=128 * 1024 + 1, of_sandbox=True)
