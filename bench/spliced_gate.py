"""`python -m bench.spliced_gate PORT...`: gates on one loop, as a node has them; prints where they listen, one a line.

The guests of each all want that port of this host.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from ipaddress import IPv4Address

from vm.egress.gate import Gate
from vm.egress.policy import Address, Policy
from vm.egress.refused import Refusals
from vm.egress.resolver import VirtualNames
from vm.egress.turns import Turns
from vm.egress.upstream import Upstream

HOST = "good.example"


class _Here(Upstream):
    async def resolve(self, name: str, places: asyncio.Semaphore) -> list[Address]:
        return [IPv4Address("127.0.0.1")]


def _gate(port: int, turns: Turns) -> int:
    names = VirtualNames()
    wanted = names.address_of(HOST)
    listener = socket.create_server(("127.0.0.1", 0))
    Gate(
        listener,
        policy=Policy([HOST]),
        names=names,
        refusals=Refusals(["127.0.0.0/8"]),
        upstream=_Here(),
        journal=lambda passage: None,
        limit=1024,
        original=lambda sock: (wanted, port),
        turns=turns,
    ).open()
    return int(listener.getsockname()[1])


async def main(ports: list[int]) -> None:
    turns = Turns()
    for port in ports:
        print(_gate(port, turns), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main([int(word) for word in sys.argv[1:]]))
