"""Proves on a machine of its own that a guest has no network: what the doctor runs, and CI with it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from vm.api import Identity, MachineSpec, MachineState, Node
from vm.errors import VmError
from vm.guest.calls import GuestCall
from vm.host.preflight import Finding, Level

LOOKUP_LIMIT = 0.1  # seconds: programs that try a name first must not hang
BOOT_PATIENCE = 120.0

# Runs inside the guest as root: what root cannot reach, nobody can. Each attempt says how it ended.
_PROGRAM = """
import json, socket, subprocess, sys, time
targets = json.loads(sys.argv[1])
def attempt(kind, family, address):
    with socket.socket(family, kind) as s:
        s.settimeout(2)
        try:
            s.connect(address)
            if kind == socket.SOCK_DGRAM:
                s.send(b"x")
        except OSError as error:
            return str(error)
        return None
times = []
for name in ("one.example", "two.example", "three.example"):
    began = time.perf_counter()
    try:
        socket.getaddrinfo(name, 443)
        lookup = None
    except OSError as error:
        lookup = str(error)
    times.append(time.perf_counter() - began)
routes = subprocess.run(["ip", "route"], capture_output=True, text=True).stdout
routes += subprocess.run(["ip", "-6", "route", "show", "default"], capture_output=True, text=True).stdout
print(json.dumps({
    "lookup": lookup, "seconds": sorted(times)[1], "routes": routes.split("\\n")[:-1],
    "tcp": {a: attempt(socket.SOCK_STREAM, socket.AF_INET, (a, p)) for a, p in targets},
    "udp": {a: attempt(socket.SOCK_DGRAM, socket.AF_INET, (a, 53)) for a, p in targets},
    "tcp6": attempt(socket.SOCK_STREAM, socket.AF_INET6, ("2001:db8::1", 443)),
}))
"""


@dataclass(frozen=True, slots=True)
class Target:
    """An address and TCP port that the guest tries to reach."""

    address: str
    port: int


async def no_network(node: Node, *, targets: Sequence[Target], memory_mib: int = 512) -> list[Finding]:
    """Boot a machine, try to get out of it as its root, remove it again; a finding for each thing tried."""
    spec = MachineSpec(
        machine=secrets.token_hex(16), memory_mib=memory_mib, vcpus=1, disk_gib=10, identity=Identity("doctor")
    )
    try:
        await node.machine_start(spec)
        info = await node.machine_wait(spec.machine, timeout=BOOT_PATIENCE)
        if info.state is not MachineState.READY:
            return [
                Finding("a machine", Level.FAIL, f"does not start: {info.detail or info.state}", "see the node's log")
            ]
        boot = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in info.stages.items() if seconds >= 0.05)
        findings = [Finding("a machine", Level.OK, f"boots ({boot})")]
        return findings + _judge(await _tried(node, spec.machine, targets))
    except VmError as error:
        return [Finding("a machine", Level.FAIL, f"{error.code}: {error.detail}", "see the node's log")]
    finally:
        await _remove(node, spec.machine)


async def _tried(node: Node, machine: str, targets: Sequence[Target]) -> dict[str, object]:
    addresses = json.dumps([(target.address, target.port) for target in targets])
    params = {
        "command": "sudo",
        "args": ["python3", "-c", _PROGRAM, addresses],
        "stdin": "null",
        "stdout": "piped",
        "stderr": "null",
    }
    async with await GuestCall.begin(await node.stream_open(machine), "spawn", params) as spawn:
        pid = (await spawn.reply())["ok"]["pid"]
    said = b""
    async with await GuestCall.begin(await node.stream_open(machine), "process.stdout", {"pid": pid}) as output:
        await output.reply()
        while len(said) < 65_536 and (piece := await output.read()):
            said += piece
    answer: dict[str, object] = json.loads(said)
    return answer


def _judge(tried: dict[str, object]) -> list[Finding]:
    findings = []
    seconds = float(str(tried["seconds"]))
    if tried["lookup"] is None:
        findings.append(Finding("name lookup", Level.FAIL, "a guest resolved a name", "no sandbox is safe: stop Atoll"))
    else:
        level = Level.OK if seconds < LOOKUP_LIMIT else Level.WARN
        findings.append(Finding("name lookup", level, f"fails in {seconds * 1000:.0f} ms ({tried['lookup']})"))
    reached = [
        f"{kind} {address}"
        for kind in ("tcp", "udp")
        for address, error in dict(tried[kind]).items()  # type: ignore[call-overload]
        if error is None
    ]
    if tried["tcp6"] is None:
        reached.append("tcp6")
    if tried["routes"]:
        findings.append(Finding("routes", Level.FAIL, f"a guest has some: {tried['routes']}", "report this"))
    else:
        findings.append(Finding("routes", Level.OK, "a guest has none"))
    if reached:
        findings.append(
            Finding("isolation", Level.FAIL, f"a guest reached {', '.join(reached)}", "stop Atoll, report this")
        )
    else:
        findings.append(Finding("isolation", Level.OK, "a guest's root reached nothing: no TCP, no UDP, no IPv6"))
    return findings


async def _remove(node: Node, machine: str) -> None:
    try:
        await node.machine_stop(machine)
        await node.machine_forget(machine)
    except VmError:
        return  # it never came to be, or the node is gone, whose next start sweeps it
