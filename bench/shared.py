"""What a flood of one sandbox leaves another: two gates on one loop, as a node has them, on a core of their own.

`python -m bench.shared PORT COUNT` is the flood: so many downloads at a time, for ever.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
from contextlib import ExitStack

from bench.report import Number, median
from bench.spliced import download, program
from bench.spliced_server import REQUEST, SIZE

RUNS = 5
FLOOD = 64


def shared() -> list[Number]:
    """A download's speed alone, beside one of another sandbox's, and beside many."""
    with ExitStack() as stack:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[1:] or cores)
        stack.callback(os.sched_setaffinity, 0, cores)
        servers = [stack.enter_context(program(None, "bench.spliced_server"))[0] for _ in range(2)]
        ours, theirs = stack.enter_context(program(cores[0], "bench.spliced_gate", *map(str, servers), lines=2))
        speeds: dict[int, list[float]] = {0: [], 1: [], FLOOD: []}
        for _ in range(RUNS):
            for count, measured in speeds.items():
                with program(None, "bench.shared", str(theirs), str(count)):
                    measured.append(download(ours) / 1e6)
    alone, one, many = (median(measured) for measured in speeds.values())
    note = f"beside one download of it: {one:.4g} MB/s; half is the fair share"
    return [
        Number(f"a download beside {FLOOD} of another sandbox", many, "MB/s", alone, "alone", at_least=0.5, note=note)
    ]


def _flood(port: int, count: int) -> None:
    selector = selectors.EpollSelector()
    room = bytearray(2**18)
    left: dict[int, int] = {}
    asked = b"B" + bytes(REQUEST - 1)
    for _ in range(count):
        sock = socket.create_connection(("127.0.0.1", port))
        selector.register(sock, selectors.EVENT_READ, sock)
        left[sock.fileno()] = SIZE
        sock.sendall(asked)
    print(count, flush=True)
    while True:
        for key, _events in selector.select():
            left[key.fd] -= key.data.recv_into(room)
            if not left[key.fd]:
                left[key.fd] = SIZE
                key.data.sendall(asked)


if __name__ == "__main__":
    _flood(int(sys.argv[1]), int(sys.argv[2]))
