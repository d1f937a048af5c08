"""Threads that ask the database: each keeps its connection."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.installation import CHECKOUT
from vm.host.run import run

_PROGRAM = """
import asyncio, threading
import django
django.setup()
from django.db import connection
from django.db.backends.signals import connection_created
from sandboxes.database import THREADS, in_thread

opened = []
connection_created.connect(lambda **said: opened.append(threading.get_ident()), weak=False)

def write(statement):
    with connection.cursor() as cursor:
        cursor.execute(statement)

def read():
    with connection.cursor() as cursor:
        return cursor.execute("SELECT v FROM t").fetchone()[0]

async def main():
    await in_thread(write, "CREATE TABLE t (v INTEGER)")
    await in_thread(write, "INSERT INTO t VALUES (0)")
    for value in range(50):
        await in_thread(write, f"UPDATE t SET v = {value}")
        assert {*await asyncio.gather(*(in_thread(read) for _ in range(THREADS)))} == {value}
    assert len(opened) == len(set(opened)) <= THREADS, opened

asyncio.run(main())
write("UPDATE t SET v = 99")
assert connection.settings_dict["CONN_MAX_AGE"] == 0
"""


def test_threads_keep_their_connections(tmp_path: Path) -> None:
    told = {
        "ATOLL_DATA": tmp_path,
        "DATABASE_URL": f"sqlite:///{tmp_path / 'file.sqlite3'}",
        "DJANGO_SETTINGS_MODULE": "ide.settings.base",
        "PYTHONPATH": CHECKOUT,
    }
    run(["env", *(f"{name}={value}" for name, value in told.items()), sys.executable, "-c", _PROGRAM], cwd=CHECKOUT)
