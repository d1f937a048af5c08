"""Network namespaces, one for each machine: made closed, given one tap, removed.

Entering a namespace changes the thread that does it, so every entry happens in a fresh thread that ends with the work.
Everything here blocks, for some 20 ms.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyroute2 import IPRoute, NetlinkError

from vm.errors import HypervisorError
from vm.host.run import CommandFailed, run

RUN = Path("/run/netns")
_MS_BIND, _MNT_DETACH = 4096, 2
_libc = ctypes.CDLL(None, use_errno=True)


# Seconds after which the kernel forgets a flow that is over, or never began: a machine has only so many
_FORGOTTEN = {"udp_timeout": 10, "udp_timeout_stream": 10} | {
    f"tcp_timeout_{state}": 10 for state in ("syn_recv", "fin_wait", "close_wait", "last_ack", "time_wait", "close")
}

# What a guest has at the other end of its tap, the same in every machine
GATEWAY, PREFIX = "10.0.0.1", 30


def namespace_create(name: str, rules: str, also: Callable[[], None] = lambda: None) -> None:
    """Make a namespace without IPv6 where `rules` hold from the start. HypervisorError; nothing is left then.

    `also` is called inside of it, before it has its name.
    """
    RUN.mkdir(exist_ok=True)
    place = RUN / name
    namespace_remove(name)

    def inside() -> None:
        os.unshare(os.CLONE_NEWNET)
        for scope in ("all", "default"):
            with suppress(FileNotFoundError):  # a host without IPv6
                Path(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6").write_text("1")
        run(["nft", "-f", "-"], input_text=rules, timeout=10)
        for name, seconds in _FORGOTTEN.items():
            Path(f"/proc/sys/net/netfilter/nf_conntrack_{name}").write_text(str(seconds))
        also()
        # Only now does it have a name: whoever finds a namespace of ours finds it closed
        place.touch(mode=0o444)
        _check(_libc.mount(b"/proc/thread-self/ns/net", str(place).encode(), None, _MS_BIND, None), place)

    try:
        _in_fresh_thread(inside)
    except BaseException:
        namespace_remove(name)
        raise


def tap_move(tap: str, name: str) -> None:
    """Take a tap from the host's namespace into `name`, up as its guest's gateway.

    HypervisorError if it is not there.
    """
    with _links() as links, _opened(name) as target:
        found = links.link_lookup(ifname=tap)
        if not found:
            raise HypervisorError(f"the tap {tap} is not in the host's namespace")
        links.link("set", index=found[0], net_ns_fd=target.fd)

        def inside() -> None:
            os.setns(target.fd, os.CLONE_NEWNET)
            with _links() as there:
                moved = there.link_lookup(ifname=tap)
                if not moved:
                    raise HypervisorError(f"the tap {tap} went with its last user")
                there.addr("add", index=moved[0], address=GATEWAY, prefixlen=PREFIX)
                there.link("set", index=moved[0], state="up")

        _in_fresh_thread(inside)


def namespace_remove(name: str) -> None:
    """Remove a namespace with what is in it, once its last user is gone. Repeatable."""
    place = RUN / name
    # Twice mounted is twice unmounted: a create that was killed may have been tried again
    while _libc.umount2(str(place).encode(), _MNT_DETACH) == 0:
        pass
    place.unlink(missing_ok=True)


def namespace_names(prefix: str) -> list[str]:
    """The namespaces whose name begins with `prefix`."""
    return sorted(entry.name for entry in RUN.glob(f"{prefix}*")) if RUN.exists() else []


def tap_names(prefix: str) -> list[str]:
    """The links in the host's namespace whose name begins with `prefix`."""
    return sorted(path.name for path in Path("/sys/class/net").glob(f"{prefix}*"))


def tap_remove(tap: str) -> None:
    """Delete a link from the host's namespace, if it does not go by itself. Repeatable; HypervisorError."""
    with _links() as links:
        for index in links.link_lookup(ifname=tap):
            try:
                links.link("del", index=index)
            except NetlinkError as error:
                # A tap goes with its last user, which libvirt may still be
                if error.code != errno.ENODEV:
                    raise


def in_namespace(name: str, work: Callable[[], None]) -> None:
    """Do `work` inside a namespace, in a thread of its own. HypervisorError if it is not there, or on an OSError."""
    with _opened(name) as target:

        def inside() -> None:
            os.setns(target.fd, os.CLONE_NEWNET)
            work()

        _in_fresh_thread(inside)


def namespace_inspect(name: str) -> dict[str, list[str]]:
    """What is in a namespace, for checks: its `links`, its `addresses` and its `routes`, as text."""
    seen: dict[str, list[str]] = {}

    def look() -> None:
        with _links() as there:
            seen["links"] = [link.get("IFLA_IFNAME") for link in there.get_links()]
            seen["addresses"] = [address.get("IFA_ADDRESS") for address in there.get_addr()]
            seen["routes"] = [str(route.get("RTA_DST")) for route in there.get_routes()]

    in_namespace(name, look)
    return seen


@contextmanager
def _links() -> Iterator[IPRoute]:
    try:
        with IPRoute() as links:
            yield links
    except (NetlinkError, OSError) as error:
        raise HypervisorError(f"the host's network refused: {error}") from error


class _opened:
    def __init__(self, name: str) -> None:
        self._place = RUN / name
        self.fd = -1

    def __enter__(self) -> _opened:
        try:
            self.fd = os.open(self._place, os.O_RDONLY)
        except FileNotFoundError as error:
            raise HypervisorError(f"the namespace {self._place.name} is not there") from error
        return self

    def __exit__(self, *rest: object) -> None:
        os.close(self.fd)


def _in_fresh_thread(work: Callable[[], None]) -> None:
    failed: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except BaseException as error:  # carried over to the caller's thread, below
            failed.append(error)

    thread = threading.Thread(target=body, name="namespace")
    thread.start()
    thread.join()
    if failed:
        if isinstance(failed[0], OSError | CommandFailed):
            raise HypervisorError(f"the machine's network namespace failed: {failed[0]}") from failed[0]
        raise failed[0]


def _check(result: int, place: Path) -> None:
    if result != 0:
        code = ctypes.get_errno() or errno.EIO
        raise OSError(code, os.strerror(code), str(place))
