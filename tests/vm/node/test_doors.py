"""The doors' settings are read strictly; what was made for nobody is let go of."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from vm.errors import HypervisorError
from vm.net.sockets import DoorSockets
from vm.node.config import NodeConfig
from vm.node.doors import Doors, resolver_address
from vm.storage.layout import Layout


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("", None),
        ("192.0.2.53", ("192.0.2.53", 53)),
        ("192.0.2.53:5353", ("192.0.2.53", 5353)),
        ("[2001:db8::53]:53", ("2001:db8::53", 53)),
    ],
)
def test_a_resolver_is_an_address(text: str, address: tuple[str, int] | None) -> None:
    assert resolver_address(text) == address


@pytest.mark.parametrize("text", ["resolver.example:53", "192.0.2.53:", "192.0.2.53:0", "192.0.2.53:99999", ":53"])
def test_what_is_no_resolver(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        resolver_address(text)


def test_a_node_with_bad_egress_settings_says_so(tmp_path: Path) -> None:
    config = NodeConfig(data=tmp_path, image_cache=tmp_path, key_file=tmp_path)
    for wrong in ({"egress_dns": "x"}, {"egress_internal_allow": ("10.0.0.0/33",)}):
        with pytest.raises(HypervisorError, match="egress settings"):
            Doors(replace(config, **wrong), Layout(tmp_path))


def test_sockets_that_nobody_waits_for_are_closed(tmp_path: Path) -> None:
    """A namespace lives as long as a socket in it: what a step made that was given up must not stay."""
    doors = Doors(NodeConfig(data=tmp_path, image_cache=tmp_path, key_file=tmp_path), Layout(tmp_path))
    made = [DoorSockets(socket.socket(), socket.socket()) for _ in range(3)]
    doors.made("a", made[0])
    doors.made("a", made[1])
    assert (made[0].tcp.fileno(), made[1].tcp.fileno() > 0) == (-1, True)
    doors.unmade("a")
    doors.unmade("a")
    doors.made("b", made[2])
    assert made[1].udp.fileno() == -1
    made[2].close()
