"""The embedded queue, with a writer and a reader that look at the same directory at once."""

from __future__ import annotations

import threading
from pathlib import Path
from queue import Empty

from kombu.connection import Connection
from kombu.transport import TRANSPORT_ALIASES

import ide.celery
from ide.broker import SCHEME, TRANSPORT

MESSAGES = 300
PAYLOAD = {"body": "x" * 20_000}


def test_a_reader_never_sees_half_a_message(tmp_path: Path) -> None:
    """Every message arrives whole and once, however closely the reader follows the writer."""
    assert ide.celery.app.conf.broker_url.startswith(f"{SCHEME}://")
    assert TRANSPORT_ALIASES[SCHEME] == TRANSPORT
    options = {name: str(tmp_path) for name in ("data_folder_in", "data_folder_out", "control_folder")}
    with (
        Connection(f"{SCHEME}://", transport_options=options) as writer,  # type: ignore[no-untyped-call]
        Connection(f"{SCHEME}://", transport_options=options) as reader,  # type: ignore[no-untyped-call]
    ):
        put, get = writer.default_channel, reader.default_channel
        thread = threading.Thread(target=lambda: [put._put("jobs", PAYLOAD) for _ in range(MESSAGES)])
        thread.start()
        got = 0
        while got < MESSAGES:
            try:
                assert get._get("jobs") == PAYLOAD
                got += 1
            except Empty:
                assert thread.is_alive() or any(tmp_path.glob("*.msg"))
        thread.join()
