"""The doors' settings are read strictly; what was made for nobody is let go of."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from vm.api import Identity, MachineSpec, MachineState
from vm.egress.journal import Kind, Passage, Verdict
from vm.errors import HypervisorError
from vm.net.sockets import DoorSockets
from vm.node import doors as module
from vm.node.config import NodeConfig
from vm.node.doors import Doors, resolver_address
from vm.node.records import Record
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


def _opened(place: Path, connections: int = 1024) -> tuple[Doors, str]:
    """Doors of which one is open, and what its connections are handed over with."""
    layout = Layout(place)
    config = NodeConfig(data=place, image_cache=place, key_file=place, egress_connections=connections)
    doors = Doors(config, layout)
    machine = "a" * 32
    layout.names(machine).parent.mkdir(parents=True)
    tcp, udp = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for sock in (tcp, udp):
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
    doors.made("body", DoorSockets(tcp, udp))
    spec = MachineSpec(machine, 512, 1, 10, Identity("box", {}))
    doors.open(Record(spec, "hash", MachineState.READY, 1.0, "boot", "body"))
    return doors, doors._open["body"].token


def _late(port: int) -> Passage:
    return Passage(time.time(), "api.example", port, Verdict.FAILED, "", "it broke off", 0, 0, 1.0, kind=Kind.REQUEST)


async def test_requests_that_break_off_with_their_machine_are_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interceptor tells of them after the door was shut; who tells much later, or for no door, is not heard."""
    monkeypatch.setattr(module, "_LATE", 0.2)
    doors, token = _opened(tmp_path)
    doors.shut("body")
    await asyncio.sleep(0.05)
    doors._heard(token, _late(1))
    doors._heard("f" * 64, _late(2))
    await asyncio.sleep(0.4)
    doors._heard(token, _late(3))
    await doors.close()
    assert [entry.passage.port for entry in doors.spool.read("", 10).entries] == [1]


async def test_connections_that_end_with_the_node_are_written_down(tmp_path: Path) -> None:
    """Closing waits for the gates to say what became of theirs, before the journal is closed."""
    doors, _token = _opened(tmp_path)
    gate = doors._open["body"].gate
    gate._original = lambda sock: (IPv4Address("192.0.2.1"), 9)
    _reader, writer = await asyncio.open_connection(*doors._open["body"].sockets.tcp.getsockname())
    async with asyncio.timeout(5):
        while not gate.connections:
            await asyncio.sleep(0.01)
    await doors.close()
    assert [entry.passage.port for entry in doors.spool.read("", 10).entries] == [9]
    writer.close()


async def test_a_machine_has_as_many_connections_as_the_settings_say(tmp_path: Path) -> None:
    """One more is reset, and written down."""
    doors, _token = _opened(tmp_path, connections=1)
    gate = doors._open["body"].gate
    gate._original = lambda sock: (IPv4Address("192.0.2.1"), 9)
    address = doors._open["body"].sockets.tcp.getsockname()
    _first, writer = await asyncio.open_connection(*address)
    with pytest.raises(ConnectionError):
        await asyncio.wait_for((await asyncio.open_connection(*address))[0].read(1), 5)
    await doors.close()
    rules = [entry.passage.rule for entry in doors.spool.read("", 10).entries]
    assert rules.count("connection limit") == 1
    writer.close()
