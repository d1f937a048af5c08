"""Guests that try to get out, way by way: what `manage.py doctor` proves, and `--isolation` reports in full.

Two guests run on a node whose resolver, and one server that it may reach, are ours: so it is heard whatever gets out,
and seen that what is allowed does. The attempts run as root in the guest: what root cannot, nobody can.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from importlib.resources import files
from ipaddress import IPv4Address
from typing import Any

from vm.api import EgressPolicy, Identity, MachineSpec, MachineState, Node
from vm.egress import dns
from vm.egress.resolver import VIRTUAL
from vm.errors import HypervisorError, VmError
from vm.guest.calls import GuestCall
from vm.host.preflight import Finding, Level
from vm.net.nftables import GATE_PORT, RESOLVER_PORT
from vm.node.asking import pid_of, value_of

CONTROL = "control.example"
"""The one host that may be reached; everything else is tried in vain."""
DENIED = "X-Atoll-Egress: denied"
LOOKUP_LIMIT = 0.1  # seconds: programs that try a name first must not hang
BOOT_PATIENCE = 120.0
_MEMORY_MIB = 512
_GREETING = b"reached\n"
_ROUTES = ["default via 10.0.0.1 dev eth0", "10.0.0.0/30 dev eth0 proto kernel scope link src 10.0.0.2"]
_LOOPBACK = IPv4Address("127.0.0.1")
_LISTENING = "listening"
# Names that lead where no guest may go, by whatever name; the first is opened, on one port
_EVERYTHING = ("0.0.0.0/0", "*.example", "*.internal", "metadata")
"""Every address, and every name that is tried."""
_NAMES = {
    CONTROL: _LOOPBACK,
    "loopback.example": _LOOPBACK,
    "inside.example": IPv4Address("10.9.9.9"),
    "metadata.example": IPv4Address("169.254.169.254"),
}

_NO_ANSWER = "no answer"
_SAID_NO = ("metadata", "private", "host")
"""Ways to the gate, which refuses them at once: silence may mean that it dialled somebody who says nothing."""

WAYS = {  # by which it is tried, with what that is
    "metadata": "a cloud's metadata service, in every spelling of its address and by name",
    "private": "private, loopback and link-local addresses, also by names that resolve to them",
    "host": "this host's own addresses, on its own ports",
    "own ports": "the gate's and the resolver's own ports",
    "dns": "lookups that carry data: long labels, TXT, NULL and HTTPS records, other resolvers",
    "ipv6": "IPv6: addresses of this host and of the internet, neighbours, routers",
    "udp": "QUIC and other UDP",
    "icmp": "ICMP, and other protocols than TCP and UDP",
    "spoofed": "frames with another MAC, packets from other addresses",
    "fragments": "packets in fragments",
    "neighbour": "the other guest: broadcast, multicast, and frames to its MAC",
}


@dataclass(slots=True)
class Bait:
    """What listens for guests on this host. `mark` is in everything that they send."""

    mark: str
    tcp: int = 0
    udp: int = 0
    resolver: int = 0
    heard: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    control: int = 0


@asynccontextmanager
async def baits() -> AsyncIterator[Bait]:
    """Servers on every address of this host that nobody may reach, one on loopback that may be, and a resolver."""
    loop = asyncio.get_running_loop()
    bait = Bait(secrets.token_hex(8))

    class Datagrams(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            bait.heard.append(f"UDP from {addr[0]}")

    class Resolver(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            query = dns.query_read(data)
            name = b".".join(query.labels).decode("ascii", "replace")
            bait.asked.append(name)
            known = _NAMES.get(name) if query.kind == dns.A else None
            self.transport.sendto(dns.answer(query, addresses=[known] if known else []), addr)  # type: ignore[attr-defined]

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if writer.get_extra_info("sockname")[1] == bait.tcp:
            bait.heard.append(f"TCP from {writer.get_extra_info('peername')[0]}")
        writer.write(_GREETING)
        writer.close()

    everywhere = await asyncio.start_server(greet, "0.0.0.0", 0)  # noqa: S104 (every address is tried)
    port = everywhere.sockets[0].getsockname()[1]
    everywhere6 = None
    with suppress(OSError):  # a host without IPv6
        everywhere6 = await asyncio.start_server(greet, "::", port)
    control = await asyncio.start_server(greet, "127.0.0.1", 0)
    udp, _ = await loop.create_datagram_endpoint(Datagrams, ("0.0.0.0", 0))  # noqa: S104
    resolver, _ = await loop.create_datagram_endpoint(Resolver, ("127.0.0.1", 0))
    bait.tcp, bait.control = port, control.sockets[0].getsockname()[1]
    bait.udp = udp.get_extra_info("sockname")[1]
    bait.resolver = resolver.get_extra_info("sockname")[1]
    try:
        yield bait
    finally:
        everywhere.close()
        if everywhere6 is not None:
            everywhere6.close()
        control.close()
        udp.close()
        resolver.close()


async def isolated(
    node: Node, bait: Bait, *, addresses: Sequence[str], addresses6: Sequence[str], whole: bool = False
) -> list[Finding]:
    """A finding for each way out, and each attempt where the `whole` is wanted. The guests are removed again.

    `addresses` are this host's own, `addresses6` those of IPv6.

    The node must ask `bait.resolver`, and open `CONTROL` on port `bait.control` (egress_internal_allow).
    """
    machines = [secrets.token_hex(16), secrets.token_hex(16)]
    try:
        for machine in machines:
            await node.machine_start(_spec(machine, bait))
        for machine in machines:
            info = await node.machine_wait(machine, timeout=BOOT_PATIENCE)
            if info.state is not MachineState.READY:
                why = info.detail or f"it is {info.state}"
                return [Finding("a machine", Level.FAIL, f"does not start: {why}", "see the log named below")]
        boot = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in info.stages.items() if seconds >= 0.05)
        prisoner, neighbour = machines
        listening = await _Program.start(node, neighbour, "listen", [bait.mark])
        async with listening:
            if await listening.line() != _LISTENING:
                raise HypervisorError("the other guest does not listen")
            wanted = {
                "mark": bait.mark,
                "control": [CONTROL, bait.control],
                "addresses": list(addresses),
                "addresses6": list(addresses6),
                "tcp": bait.tcp,
                "udp": bait.udp,
                "ports": [GATE_PORT, RESOLVER_PORT],
            }
            async with await _Program.start(node, prisoner, "escape", [json.dumps(wanted)]) as trying:
                told = json.loads(await trying.rest())
            await listening.end()
            overheard: dict[str, int] = json.loads(await listening.rest())
    except (VmError, ValueError) as error:
        return [Finding("isolation", Level.FAIL, f"it could not be tried: {error}", "see the log named below")]
    finally:
        for machine in machines:
            await _remove(node, machine)
    started = Finding("a machine", Level.OK, f"boots ({boot})")
    return [
        started,
        *_network(told["lookup"], told["seconds"], told["routes"]),
        *judged(told["tried"], bait, overheard, whole=whole),
    ]


type Attempts = Mapping[str, Mapping[str, str]]
"""What was tried, and what it got, or how it ended: {"got": ...} or {"error": ...}."""


def judged(
    tried: Mapping[str, Attempts], bait: Bait, overheard: Mapping[str, int], *, whole: bool = False
) -> list[Finding]:
    """What the attempts mean, each by itself where the `whole` is wanted. Pure."""
    findings = [_control(tried.get("control", {}), bait, overheard)]
    for way, meaning in WAYS.items():
        attempts = tried.get(way, {})
        out = [what for what, outcome in attempts.items() if _got_out(outcome)]
        if way in _SAID_NO:
            out += [f"{what} (nobody said no)" for what, outcome in attempts.items() if _is_silence(outcome)]
        if way == "neighbour" and overheard.get("mark"):
            out.append(f"{overheard['mark']} frames arrived")
        if way == "dns":
            out += [f"the resolver upstream was asked for {name}" for name in bait.asked if bait.mark in name]
        if not attempts:
            findings.append(Finding(way, Level.FAIL, f"{meaning}: nothing was tried", "report this"))
        elif out:
            findings.append(Finding(way, Level.FAIL, f"{meaning}: {', '.join(out)}", "stop Atoll, report this"))
        else:
            findings.append(Finding(way, Level.OK, f"{meaning}: {len(attempts)} attempts, {_ends(attempts)}"))
        if whole:
            findings += [Finding(f"  {what}", Level.OK, _end(outcome)) for what, outcome in attempts.items()]
    if bait.heard:
        heard = ", ".join(sorted(set(bait.heard)))
        findings.append(Finding("this host", Level.FAIL, f"it heard a guest: {heard}", "stop Atoll, report this"))
    else:
        findings.append(Finding("this host", Level.OK, "its servers, TCP and UDP on every address, heard of nobody"))
    return findings


def _network(lookup: str, seconds: float, routes: Sequence[str]) -> list[Finding]:
    level = Level.OK if seconds < LOOKUP_LIMIT else Level.WARN
    looked = Finding("name lookup", level, f"a virtual address in {seconds * 1000:.0f} ms, nobody is asked")
    if not _is_virtual(lookup):
        looked = Finding("name lookup", Level.FAIL, f"a guest got {lookup!r}, no virtual address", "report this")
    routed = Finding("routes", Level.OK, "a guest has one, to its gate")
    if list(routes) != _ROUTES:
        routed = Finding("routes", Level.FAIL, f"a guest has others: {routes}", "report this")
    return [looked, routed]


def _is_virtual(text: str) -> bool:
    try:
        return IPv4Address(text) in VIRTUAL
    except ValueError:
        return False


def _control(attempts: Attempts, bait: Bait, overheard: Mapping[str, int]) -> Finding:
    """That the guest has a network at all, and that our ears work: else all that follows would mean nothing."""
    wrong = []
    if not any(_GREETING.decode().strip() in outcome.get("got", "") for outcome in attempts.values()):
        wrong.append(f"the host that is allowed was not reached ({attempts})")
    if CONTROL not in bait.asked:
        wrong.append("the resolver upstream was not asked for it")
    if not overheard.get("control"):
        wrong.append("the other guest did not hear its own frame")
    if wrong:
        return Finding("control", Level.FAIL, "; ".join(wrong), "see the log named below")
    return Finding("control", Level.OK, "the one host that is allowed is reached, and the other guest hears its frames")


def _got_out(outcome: Mapping[str, str]) -> bool:
    return bool(outcome.get("got")) and DENIED not in outcome["got"]


def _is_silence(outcome: Mapping[str, str]) -> bool:
    return not outcome.get("got") and outcome.get("error") == _NO_ANSWER


def _end(outcome: Mapping[str, str]) -> str:
    if _got_out(outcome):
        return f"got {outcome['got'][:60]!r}"
    return "the gate said no" if outcome.get("got") else outcome.get("error", "").lower()


def _ends(attempts: Attempts) -> str:
    counts = Counter(_end(outcome) for outcome in attempts.values())
    return ", ".join(f"{end} ({count})" if count > 1 else end for end, count in counts.most_common())


def _spec(machine: str, bait: Bait) -> MachineSpec:
    # The strictest question is what a guest reaches that may reach everything; what is opened must be on a list
    return MachineSpec(
        machine=machine,
        memory_mib=_MEMORY_MIB,
        vcpus=1,
        disk_gib=10,
        identity=Identity("doctor"),
        policy=EgressPolicy(_EVERYTHING),
    )


class _Program:
    """A Python program of ours that runs in a guest as root; its source is a file beside this one."""

    def __init__(self, node: Node, machine: str, pid: int, output: GuestCall) -> None:
        self._node, self._machine, self._pid, self._output = node, machine, pid, output
        self._said = b""

    @classmethod
    async def start(cls, node: Node, machine: str, name: str, arguments: list[str]) -> _Program:
        """Start it."""
        source = files("vm.node").joinpath("guest_programs", f"{name}.py").read_text()
        params = {
            "command": "sudo",
            "args": ["python3", "-c", source, *arguments],
            "stdin": "null",
            "stdout": "piped",
            "stderr": "null",
        }
        async with await GuestCall.begin(await node.stream_open(machine), "spawn", params) as spawn:
            pid = pid_of(value_of(await spawn.reply()))
        output = await GuestCall.begin(await node.stream_open(machine), "process.stdout", {"pid": pid})
        await output.reply()
        return cls(node, machine, pid, output)

    async def __aenter__(self) -> _Program:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._output.abort()

    async def line(self) -> str:
        """Its next line."""
        while b"\n" not in self._said and (piece := await self._output.read()):
            self._said += piece
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    async def rest(self) -> str:
        """All that it says until it ends, within bounds."""
        while len(self._said) < 262_144 and (piece := await self._output.read()):
            self._said += piece
        return self._said.decode()

    async def end(self) -> None:
        """Tell it to come to an end."""
        params = {"command": "sudo", "args": ["touch", "/run/escape-end"], "stdin": "null", "stdout": "null"}
        async with await GuestCall.begin(await self._node.stream_open(self._machine), "spawn", params) as spawn:
            await spawn.reply()


async def _remove(node: Node, machine: str) -> None:
    try:
        await node.machine_stop(machine)
        await node.machine_forget(machine)
    except VmError:
        return  # it never came to be, or the node is gone, whose next start sweeps it
