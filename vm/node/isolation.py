"""Proves on a machine of its own that a guest reaches the gate and nothing else: what the doctor runs."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from vm.api import Identity, MachineSpec, MachineState, Node
from vm.egress.resolver import VIRTUAL
from vm.errors import VmError
from vm.guest.calls import GuestCall
from vm.host.preflight import Finding, Level
from vm.net.nftables import GATE_PORT, RESOLVER_PORT

LOOKUP_LIMIT = 0.1  # seconds: programs that try a name first must not hang
BOOT_PATIENCE = 120.0
_ROUTES = ["default via 10.0.0.1 dev eth0", "10.0.0.0/30 dev eth0 proto kernel scope link src 10.0.0.2"]
_GREETING = b"reached\n"

# Runs inside the guest as root: what root cannot reach, nobody can. Each attempt says what it got, or how it ended.
_PROGRAM = """
import json, socket, subprocess, sys, time
targets, ports = json.loads(sys.argv[1])
def attempt(kind, family, address, protocol=0):
    with socket.socket(family, kind, protocol) as s:
        s.settimeout(3)
        try:
            s.connect(address)
            s.send(b"\\x08\\x00\\xf7\\xff\\x00\\x00\\x00\\x00" if protocol else b"GET / HTTP/1.0\\r\\n\\r\\n")
            return {"got": s.recv(4096).decode("latin-1")}
        except OSError as error:
            return {"error": str(error) or type(error).__name__}
times = []
for name in ("one.example", "two.example", "three.example"):
    began = time.perf_counter()
    try:
        lookup = socket.getaddrinfo(name, 443)[0][4][0]
    except OSError as error:
        lookup = str(error)
    times.append(time.perf_counter() - began)
routes = subprocess.run(["ip", "route"], capture_output=True, text=True).stdout
routes += subprocess.run(["ip", "-6", "route", "show", "default"], capture_output=True, text=True).stdout
tcp, udp, raw, four = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.AF_INET
print(json.dumps({
    "lookup": lookup, "seconds": sorted(times)[1], "routes": [r.strip() for r in routes.split("\\n")[:-1]],
    "tcp": {f"{a}:{p}": attempt(tcp, four, (a, p)) for a, p in targets},
    "udp": {f"{a}:443": attempt(udp, four, (a, 443)) for a, p in targets},
    "icmp": {a: attempt(raw, four, (a, 0), socket.IPPROTO_ICMP) for a in {a for a, p in targets} | {"10.0.0.1"}},
    "own ports": {f"{kind}:{p}": attempt(kind, four, ("10.0.0.1", p)) for p in ports for kind in (tcp, udp)},
    "tcp6": {"2001:db8::1": attempt(tcp, socket.AF_INET6, ("2001:db8::1", 443))},
}))
"""


@dataclass(frozen=True, slots=True)
class Target:
    """An address and TCP port that the guest tries to reach; port 0: where this process listens meanwhile."""

    address: str
    port: int = 0


async def only_the_gate(node: Node, *, targets: Sequence[Target], memory_mib: int = 512) -> list[Finding]:
    """Boot a machine that may reach all public hosts, try to reach others as its root; a finding for each thing tried.

    The machine is removed again. A server of ours, which every address of this host leads to, must hear of nobody.
    """
    spec = MachineSpec(
        machine=secrets.token_hex(16), memory_mib=memory_mib, vcpus=1, disk_gib=10, identity=Identity("doctor")
    )
    heard: list[str] = []

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(str(writer.get_extra_info("peername")[0]))
        writer.write(_GREETING)
        writer.close()

    bait = await asyncio.start_server(greet, "0.0.0.0", 0)  # noqa: S104 (every address of the host is tried)
    port = bait.sockets[0].getsockname()[1]
    try:
        await node.machine_start(spec)
        info = await node.machine_wait(spec.machine, timeout=BOOT_PATIENCE)
        if info.state is not MachineState.READY:
            return [
                Finding("a machine", Level.FAIL, f"does not start: {info.detail or info.state}", "see the node's log")
            ]
        boot = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in info.stages.items() if seconds >= 0.05)
        findings = [Finding("a machine", Level.OK, f"boots ({boot})")]
        findings += _judge(await _tried(node, spec.machine, [(one.address, one.port or port) for one in targets]))
        if heard:
            findings.append(Finding("isolation", Level.FAIL, "a guest talked to this host", "stop Atoll, report this"))
        return findings
    except VmError as error:
        return [Finding("a machine", Level.FAIL, f"{error.code}: {error.detail}", "see the node's log")]
    finally:
        bait.close()
        await _remove(node, spec.machine)


async def _tried(node: Node, machine: str, targets: Sequence[tuple[str, int]]) -> dict[str, object]:
    arguments = json.dumps([targets, [GATE_PORT, RESOLVER_PORT]])
    params = {
        "command": "sudo",
        "args": ["python3", "-c", _PROGRAM, arguments],
        "stdin": "null",
        "stdout": "piped",
        "stderr": "null",
    }
    async with await GuestCall.begin(await node.stream_open(machine), "spawn", params) as spawn:
        pid = (await spawn.reply())["ok"]["pid"]
    said = b""
    async with await GuestCall.begin(await node.stream_open(machine), "process.stdout", {"pid": pid}) as output:
        await output.reply()
        while len(said) < 262_144 and (piece := await output.read()):
            said += piece
    answer: dict[str, object] = json.loads(said)
    return answer


def _judge(tried: dict[str, object]) -> list[Finding]:
    findings = []
    seconds, lookup = float(str(tried["seconds"])), str(tried["lookup"])
    if not _is_virtual(lookup):
        findings.append(
            Finding("name lookup", Level.FAIL, f"a guest got {lookup!r}, no virtual address", "report this")
        )
    else:
        level = Level.OK if seconds < LOOKUP_LIMIT else Level.WARN
        findings.append(Finding("name lookup", level, f"a virtual address in {seconds * 1000:.0f} ms, nobody is asked"))
    if tried["routes"] == _ROUTES:
        findings.append(Finding("routes", Level.OK, "a guest has one, to its gate"))
    else:
        findings.append(Finding("routes", Level.FAIL, f"a guest has others: {tried['routes']}", "report this"))
    reached = [
        f"{kind} {target}"
        for kind in ("tcp", "udp", "icmp", "own ports", "tcp6")
        for target, outcome in dict(tried[kind]).items()  # type: ignore[call-overload]
        if outcome.get("got") and "X-Atoll-Egress: denied" not in outcome["got"]
    ]
    if reached:
        findings.append(
            Finding("isolation", Level.FAIL, f"a guest reached {', '.join(reached)}", "stop Atoll, report this")
        )
    else:
        said = "a guest's root reached nothing but its gate: no TCP past it, no UDP, no ICMP, no IPv6"
        findings.append(Finding("isolation", Level.OK, said))
    return findings


def _is_virtual(text: str) -> bool:
    try:
        return IPv4Address(text) in VIRTUAL
    except ValueError:
        return False


async def _remove(node: Node, machine: str) -> None:
    try:
        await node.machine_stop(machine)
        await node.machine_forget(machine)
    except VmError:
        return  # it never came to be, or the node is gone, whose next start sweeps it
