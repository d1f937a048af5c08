"""`python -m vm.egress.interceptor FD`: an interceptor whose node talks to it over that descriptor."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import socket
import sys

from vm.egress.interceptor.service import Service
from vm.host.confine import undumpable

_MEMORY = 2**32
"""Bytes of memory that it may have: a connection that asks for more ends, rather than what the host runs."""


def _bounded() -> None:
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    most = min(_MEMORY, max(2**30, host // 4))
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


async def _run(descriptor: int) -> None:
    await Service(socket.socket(fileno=descriptor)).run()


if __name__ == "__main__":
    undumpable()
    _bounded()
    logging.basicConfig(level="INFO", format="%(name)s %(levelname)s %(message)s")
    # Theirs may quote what passes
    for name in ("mitmproxy", "asyncio", "h2", "hpack"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    asyncio.run(_run(int(sys.argv[1])))
