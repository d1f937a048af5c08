"""A machine's namespace is closed from its first moment, takes one tap, and goes without a trace."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator

import pytest

from vm.errors import HypervisorError
from vm.host.run import run
from vm.net import nftables
from vm.net.namespace import (
    RUN,
    namespace_create,
    namespace_inspect,
    namespace_names,
    namespace_remove,
    tap_move,
    tap_names,
    tap_remove,
)

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
