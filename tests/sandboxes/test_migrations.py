"""Migrations that change data, run by the real executor."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from sandboxes.models import Sandbox
from tests.factories import Team, row


@pytest.fixture
def again(home: Team) -> Iterator[Callable[[str], None]]:
    """Goes back to a migration of ours, and from there to the newest, where the database is afterwards in any case."""

    def newest() -> None:
        executor = MigrationExecutor(connection)
        executor.migrate(executor.loader.graph.leaf_nodes())

    def go(last: str) -> None:
        MigrationExecutor(connection).migrate([("sandboxes", last)])
        newest()

    yield go
    newest()


def test_env_of_what_is_gone(home: Team, again: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of what cannot come back are forgotten, however many have some; those of a stopped workspace stay."""
    monkeypatch.setattr("sandboxes.migrations.0024_env_of_what_is_gone.BATCH", 2)
    for number in range(5):
        row(home, machine_removed=True, env={"A": str(number)})
    kept = row(home, env={"A": "b"})
    again("0023_sandbox_stopped_last")
    assert list(Sandbox.objects.exclude(env={})) == [kept]
    assert Sandbox.objects.count() == 6
