"""A machine's namespace is closed from its first moment, takes one tap, and goes without a trace."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from vm.errors import HypervisorError
from vm.host.run import run
from vm.net import nftables
from vm.net.namespace import (
    RUN,
    in_namespace,
    namespace_create,
    namespace_inspect,
    namespace_names,
    namespace_remove,
    tap_move,
    tap_names,
    tap_remove,
)

_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")


@pytest.fixture
def name() -> Iterator[str]:
    unique = f"tst{secrets.token_hex(3)}"
    yield unique
    namespace_remove(unique)
    tap_remove(unique)


def _ip(*argv: str) -> None:
    run(["ip", *argv])


def test_closed_before_it_has_a_name(name: str) -> None:
    """Whoever finds the namespace finds the rules loaded, IPv6 off, no address and no route; our thread stays out."""
    before, threads = os.readlink("/proc/thread-self/ns/net"), threading.active_count()
    namespace_create(name, nftables.gated())
    assert os.readlink("/proc/thread-self/ns/net") == before
    assert threading.active_count() <= threads
    rules = run(["ip", "netns", "exec", name, "nft", "list", "ruleset"])
    assert rules.stdout.count("policy drop") == 3
    ipv6 = run(["ip", "netns", "exec", name, "sysctl", "-n", "net.ipv6.conf.all.disable_ipv6"])
    assert ipv6.stdout.strip() == "1"
    seen = namespace_inspect(name)
    assert seen == {"links": ["lo"], "addresses": [], "routes": []}
    namespace_remove(name)
    namespace_remove(name)
    assert namespace_names(name) == []


def test_a_tap_may_go_by_itself(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last user ends while it is being removed: that is no failure."""
    _ip("tuntap", "add", "dev", name, "mode", "tap")

    class Links(IPRoute):  # type: ignore[misc]
        def link_lookup(self, ifname: str) -> list[int]:
            index = socket.if_nametoindex(ifname)
            _ip("link", "del", ifname)
            return [index]

    monkeypatch.setattr("vm.net.namespace.IPRoute", Links)
    tap_remove(name)
    monkeypatch.undo()
    assert tap_names(name) == []


def test_bad_rules_leave_nothing(name: str) -> None:
    """When the rules cannot be loaded there is no namespace: never an open one."""
    with pytest.raises(HypervisorError):
        namespace_create(name, "table inet atoll { nonsense }")
    assert not (RUN / name).exists()


def test_a_tap_moves_and_goes_with_its_namespace(name: str) -> None:
    """Moved, it is in the host's namespace no more and up in the other; with the namespace it is gone."""
    namespace_create(name, nftables.gated())
    _ip("tuntap", "add", "dev", name, "mode", "tap")
    assert tap_names(name) == [name]
    tap_move(name, name)
    assert tap_names(name) == []
    assert namespace_inspect(name)["links"] == ["lo", name]
    namespace_remove(name)
    # a second machine may use neither name again, but the kernel must have let go of both
    namespace_create(name, nftables.gated())
    assert namespace_inspect(name)["links"] == ["lo"]


def _flow(port: int) -> bytes:
    """A lookup of a guest's from that port, as a frame to everybody."""
    datagram = struct.pack("!HHHH", port, 53, 8, 0)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, 17, 0, bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1]))
    total = sum(struct.unpack("!10H", head))
    check = ~((total >> 16) + (total & 0xFFFF)) & 0xFFFF
    ethernet = b"\xff" * 6 + bytes([2, 0, 0, 0, 0, 9, 8, 0])
    return ethernet + head[:10] + struct.pack("!H", check) + head[12:] + datagram


def test_a_flood_of_flows_takes_no_more_than_its_share(name: str) -> None:
    """The kernel keeps so many of a machine and not one more, and forgets those that are over."""
    namespace_create(name, nftables.gated())
    _ip("tuntap", "add", "dev", name, "mode", "tap")
    with open("/dev/net/tun", "r+b", buffering=0) as tap:
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
        tap_move(name, name)
        counted: list[int] = []

        def count() -> None:
            counted.append(int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text()))

        for flows in (100, nftables.MAX_TRACKED + 2000):
            for port in range(1024, 1024 + flows):
                tap.write(_flow(port))
            in_namespace(name, count)
        assert counted[0] == 100
        assert nftables.MAX_TRACKED - 100 <= counted[1] <= nftables.MAX_TRACKED
        # The kernel looks for what is over about once a minute, at times of its own
        deadline = time.monotonic() + 150
        while counted[-1] > 100 and time.monotonic() < deadline:
            time.sleep(0.5)
            tap.write(_flow(1024))
            in_namespace(name, count)
        assert counted[-1] <= 100


def test_a_missing_tap_is_an_error(name: str) -> None:
    namespace_create(name, nftables.gated())
    with pytest.raises(HypervisorError):
        tap_move(f"{name}x", name)
    with pytest.raises(HypervisorError):
        tap_move(name, f"{name}-none")


def test_made_again_over_a_killed_attempt(name: str) -> None:
    """A half-made namespace, as a kill leaves it, is replaced."""
    RUN.mkdir(exist_ok=True)
    (RUN / name).touch()
    namespace_create(name, nftables.gated())
    namespace_create(name, nftables.gated())
    assert namespace_inspect(name)["links"] == ["lo"]
