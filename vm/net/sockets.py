"""The two sockets of a machine's namespace at which its guest's traffic ends."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from vm.net.namespace import in_namespace
from vm.net.nftables import GATE_PORT, RESOLVER_PORT


@dataclass(frozen=True, slots=True)
class DoorSockets:
    """`tcp` is bound but does not listen yet: until it does, whoever connects is refused at once."""

    tcp: socket.socket
    udp: socket.socket

    def close(self) -> None:
        """Let go of both, and so of the namespace. Repeatable."""
        self.tcp.close()
        self.udp.close()


def make_here() -> DoorSockets:
    """Make them in the namespace of the calling thread. OSError."""
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        # The last node's connections may still linger on the port
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind(("", GATE_PORT))
        udp.bind(("", RESOLVER_PORT))
    except BaseException:
        tcp.close()
        udp.close()
        raise
    return DoorSockets(tcp, udp)


def make_in(name: str) -> DoorSockets:
    """Make them in the namespace `name`. HypervisorError. Blocks."""
    made: list[DoorSockets] = []
    in_namespace(name, lambda: made.append(make_here()))
    return made[0]
