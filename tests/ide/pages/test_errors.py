"""Error pages say what happened and lead somewhere that works."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from tests.factories import Team
from tests.ide.pages.test_views import signed_in


def test_an_unknown_host_name_is_told_what_to_set(settings: Any) -> None:
    """Without a way on: every page would say the same under this name."""
    settings.ALLOWED_HOSTS = ["atoll.example"]
    answer = Client(headers={"host": "other.example"}).get("/")
    assert answer.status_code == 400
    assert "ATOLL_ALLOWED_HOSTS" in answer.content.decode()
    assert "To the sandboxes" not in answer.content.decode()


def test_a_form_from_elsewhere_is_refused_with_what_to_do(db: None) -> None:
    answer = Client(enforce_csrf_checks=True).post("/login", {"email": "a@b.example", "password": "x"})
    assert answer.status_code == 403
    assert "ATOLL_TRUSTED_ORIGINS" in answer.content.decode()


def test_what_is_not_there_is_an_error_page_of_ours(home: Team) -> None:
    answer = signed_in(home).get("/nothing")
    assert answer.status_code == 404
    assert "There is nothing at this address" in answer.content.decode()


def test_the_page_of_a_fault_needs_nothing_else(home: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever broke may be what the other pages need: no script, no style sheet, no database."""

    def broken(*_arguments: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("ide.pages.views.frame", broken)
    client = signed_in(home)
    client.raise_request_exception = False
    answer = client.get("/")
    shown = answer.content.decode()
    assert (answer.status_code, "Something broke on the server" in shown) == (500, True)
    assert "{%" not in shown
    assert "src=" not in shown
    assert "<link" not in shown
