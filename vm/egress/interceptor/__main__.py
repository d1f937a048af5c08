"""`python -m vm.egress.interceptor FD`: an interceptor whose node talks to it over that descriptor."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys

from vm.egress.interceptor.service import Service
from vm.host.confine import undumpable


async def _run(descriptor: int) -> None:
    await Service(socket.socket(fileno=descriptor)).run()


if __name__ == "__main__":
    undumpable()
    logging.basicConfig(level="INFO", format="%(name)s %(levelname)s %(message)s")
    # Theirs may quote what passes
    for name in ("mitmproxy", "asyncio", "h2", "hpack"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    asyncio.run(_run(int(sys.argv[1])))
