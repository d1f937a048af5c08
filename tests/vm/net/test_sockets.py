"""Behind a tap there is the gate and nothing else: tried with a namespace in the guest's place, root in it included."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest
from pyroute2 import IPRoute

from vm.egress.connection import original_destination
from vm.host.run import run
from vm.net import nftables
from vm.net.namespace import RUN, in_namespace, namespace_create, namespace_remove, tap_move
from vm.net.sockets import DoorSockets, make_here, make_in

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")


@pytest.fixture
def door() -> Iterator[tuple[str, str, DoorSockets]]:
    """A machine's namespace, one that stands for its guest (joined by a veth in the tap's place), and its sockets."""
    tag = secrets.token_hex(3)
    outside, guest = f"tst{tag}", f"tsg{tag}"
    made: list[DoorSockets] = []
    namespace_create(outside, nftables.gated(), lambda: made.append(make_here()))
    namespace_create(guest, "table inet none")
    try:
        run(["ip", "link", "add", outside, "type", "veth", "peer", "name", guest])
        tap_move(outside, outside)
        run(["ip", "link", "set", guest, "netns", guest])

        def configure() -> None:
            with IPRoute() as there:
                index = there.link_lookup(ifname=guest)[0]
                there.addr("add", index=index, address="10.0.0.2", prefixlen=30)
                there.link("set", index=index, state="up")
                there.route("add", dst="default", gateway="10.0.0.1")

        in_namespace(guest, configure)
        yield outside, guest, made[0]
    finally:
        made[0].close()
        namespace_remove(outside)
        namespace_remove(guest)


def _from(guest: str, kind: int, address: tuple[str, int], data: bytes = b"") -> socket.socket | OSError:
    """What comes of connecting from inside the guest: a socket, or an error."""
    result: list[socket.socket | OSError] = []

    def attempt() -> None:
        sock = socket.socket(socket.AF_INET, kind)
        sock.settimeout(2)
        try:
            sock.connect(address)
            if data:
                sock.send(data)
                sock.recv(1)
        except OSError as error:
            sock.close()
            result.append(error)
        else:
            result.append(sock)

    in_namespace(guest, attempt)
    return result[0]


@pytest.mark.parametrize("address", ["203.0.113.5", "10.0.0.1", "169.254.169.254"])
def test_tcp_to_anywhere_ends_at_the_gate(door: tuple[str, str, DoorSockets], address: str) -> None:
    """Whatever is dialled, our listener accepts it and is told where it wanted to go; nothing before it listens."""
    _outside, guest, sockets = door
    assert isinstance(_from(guest, socket.SOCK_STREAM, (address, 443)), ConnectionRefusedError)
    sockets.tcp.listen()
    client = _from(guest, socket.SOCK_STREAM, (address, 443))
    assert isinstance(client, socket.socket)
    accepted, peer = sockets.tcp.accept()
    assert peer[0] == "10.0.0.2"
    wanted, port = original_destination(accepted)
    assert (str(wanted), port) == (address, 443)
    accepted.close()
    client.close()


def test_the_doors_own_ports_are_refused(door: tuple[str, str, DoorSockets]) -> None:
    """Who dials the gate's port by its own number never gets to the gate."""
    _outside, guest, sockets = door
    sockets.tcp.listen()
    for _ in range(2):
        outcome = _from(guest, socket.SOCK_STREAM, ("10.0.0.1", nftables.GATE_PORT))
        assert isinstance(outcome, OSError)
    with pytest.raises(BlockingIOError):
        sockets.tcp.accept()


def test_lookups_end_at_the_resolver_and_other_udp_is_refused_fast(door: tuple[str, str, DoorSockets]) -> None:
    _outside, guest, sockets = door
    for address in ("10.0.0.1", "203.0.113.5"):
        assert isinstance(_from(guest, socket.SOCK_DGRAM, (address, 53), b"question"), TimeoutError)
        assert sockets.udp.recv(100) == b"question"
        _expect_refused(guest, address)
    _expect_refused(guest, "10.0.0.1", nftables.RESOLVER_PORT)
    with pytest.raises(BlockingIOError):
        sockets.udp.recv(100)


def _expect_refused(guest: str, address: str, port: int = 443) -> None:
    assert isinstance(_from(guest, socket.SOCK_DGRAM, (address, port), b"quic"), ConnectionRefusedError)


def test_ping_and_forwarding_go_nowhere(door: tuple[str, str, DoorSockets]) -> None:
    """An echo request has no answer, and a connection of before, as a resumed guest has them, is reset."""
    _outside, guest, _sockets = door
    lost: list[bool] = []

    def ping() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
            sock.settimeout(0.3)
            sock.sendto(b"\x08\x00\xf7\xff\x00\x00\x00\x00", ("10.0.0.1", 0))
            with suppress(TimeoutError):
                sock.recv(100)
                return
            lost.append(True)

    in_namespace(guest, ping)
    assert lost == [True]


def test_the_next_node_makes_them_anew(door: tuple[str, str, DoorSockets]) -> None:
    """With the last node's gone the guest is refused; made in the namespace they are the same again."""
    outside, guest, sockets = door
    sockets.tcp.listen()
    sockets.close()
    assert isinstance(_from(guest, socket.SOCK_STREAM, ("203.0.113.5", 443)), ConnectionRefusedError)
    before, ours = os.readlink("/proc/thread-self/ns/net"), make_in(outside)
    assert os.readlink("/proc/thread-self/ns/net") == before
    assert (RUN / outside).exists()
    ours.tcp.listen()
    client = _from(guest, socket.SOCK_STREAM, ("203.0.113.5", 443))
    assert isinstance(client, socket.socket)
    client.close()
    ours.close()
