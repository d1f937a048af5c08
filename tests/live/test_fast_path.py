"""Templates, clones, the pool, suspend, resume and fork on real machines: what they keep apart and survive."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.nodes import BOOT, NodeProcess, boot, execute, spec, start_command
from vm.api import MachineInfo, MachineState, Node, Origin, StopReason
from vm.errors import HostFull, VmError
from vm.guest.calls import call
from vm.host.run import run
from vm.libvirt import save_image

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def process() -> Iterator[NodeProcess]:
    running = NodeProcess(clones=True, warm=(512, 1, 10), pool_floor=1, pool_ceiling=2)
    running.start()
    yield running
    running.close()


async def pool_is_ready(node: Node, count: int = 1) -> None:
    until = time.monotonic() + BOOT
    while (await node.host_info()).pool_ready < count:
        assert time.monotonic() < until, await node.host_info()
        await asyncio.sleep(0.1)


async def gone(node: Node, *machines: str) -> None:
    for machine in machines:
        await node.machine_stop(machine)
        await node.machine_forget(machine)


RANDOM = """
set -e
echo urandom $(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \\n')
python3 -c 'import os, random, uuid
print("python", os.urandom(24).hex()); print("random", random.getrandbits(190)); print("uuid4", uuid.uuid4())'
echo openssl $(openssl rand -hex 24)
echo kernel-uuid $(cat /proc/sys/kernel/random/uuid)
echo boot-id $(cat /proc/sys/kernel/random/boot_id)
echo machine-id $(cat /etc/machine-id)
echo hostname $(hostname)
echo clock $(date +%s.%N)
echo temporary $(basename $(mktemp -u /tmp/XXXXXXXXXXXXXXXXXXXX))
node -e 'const c = require("crypto")
console.log("node", c.randomBytes(24).toString("hex")); console.log("node-uuid", c.randomUUID())'
"""


async def test_twenty_clones_share_no_random_numbers_and_no_ids(node: Node) -> None:
    """Twenty created together, from pool and template: every source gives twenty values, and so does each id."""
    await pool_is_ready(node)
    machines = [secrets.token_hex(16) for _ in range(20)]
    origins: Counter[Origin | None] = Counter()
    try:
        for number, machine in enumerate(machines):
            await node.machine_start(spec(machine, hostname=f"clone-{number}"))
        infos = await asyncio.gather(*(node.machine_wait(machine, timeout=BOOT) for machine in machines))
        assert {info.state for info in infos} == {MachineState.READY}, infos
        origins.update(info.origin for info in infos)
        assert set(origins) == {Origin.POOL, Origin.CLONE}, origins
        asked = time.time() - 2
        outputs = await asyncio.gather(
            *(execute(node, machine, "sh", "-c", RANDOM, timeout=300) for machine in machines)
        )
        seen: dict[str, list[str]] = {}
        for code, output in outputs:
            assert code == 0, output
            for line in output.decode().splitlines():
                name, value = line.split(" ", 1)
                seen.setdefault(name, []).append(value)
        # Each has the host's time, and not that of the moment its template was made
        assert all(asked <= float(value) <= time.time() for value in seen.pop("clock"))
        assert len(seen) == 12, list(seen)
        for name, values in seen.items():
            assert len(values) == len(set(values)) == 20, f"{name}: {values}"
        # Nor does any value of one source stand in another one's
        everything = [value for values in seen.values() for value in values]
        assert len(everything) == len(set(everything))
    finally:
        await asyncio.gather(*(gone(node, machine) for machine in machines))


async def test_another_size_boots_once_and_is_cloned_from_then_on(node: Node) -> None:
    """The first machine of a size says why it was booted; once its template is there, the next one is cloned."""
    first, second = secrets.token_hex(16), secrets.token_hex(16)
    booted = await boot(node, first, memory_mib=700)
    assert booted.origin is Origin.COLD
    assert "no template" in booted.note
    assert booted.memory_mib == 700
    # What it has is what was asked for, rounded up
    total = int((await execute(node, first, "sh", "-c", "grep MemTotal /proc/meminfo | tr -dc 0-9"))[1]) // 1024
    assert 640 < total <= 768
    templates = (await node.host_info()).templates
    until = time.monotonic() + BOOT
    while (await node.host_info()).templates == templates:
        assert time.monotonic() < until
        await asyncio.sleep(0.2)
    assert (await boot(node, second, memory_mib=760)).origin in (Origin.CLONE, Origin.POOL)
    await gone(node, first, second)


async def test_a_broken_template_is_discarded_and_the_machine_boots(process: NodeProcess, node: Node) -> None:
    """Its memory cut short while the node runs: the create says it was booted and why; a new template is baked."""
    await pool_is_ready(node)
    place = next(
        path.parent
        for path in (process.data / "templates").glob("*/template.json")
        if json.loads(path.read_text())["size"]["memory_mib"] == 512
    )
    memory = place / "memory.save"
    memory.chmod(0o600)
    with memory.open("r+b") as file:
        file.truncate(save_image.read(memory).stream_at + 1_000_000)
    # A copy that the next clone would take
    disk = json.loads((place / "template.json").read_text())["disk"]
    (Path("/dev/shm") / f"atoll-{process.tag}" / f"{disk}.spare").unlink(missing_ok=True)
    machines = [secrets.token_hex(16) for _ in range(3)]
    try:
        infos = await asyncio.gather(*(boot(node, machine) for machine in machines))
        fallen = [info for info in infos if info.origin is Origin.COLD]
        assert fallen, infos
        assert all("could not be cloned" in info.note or "no template" in info.note for info in fallen), fallen
        assert any("could not be cloned" in info.note for info in fallen), fallen
    finally:
        await gone(node, *machines)
    until = time.monotonic() + BOOT
    origin = None
    while origin is not Origin.POOL:
        assert time.monotonic() < until, "no new template was baked"
        again = secrets.token_hex(16)
        origin = (await boot(node, again)).origin
        await gone(node, again)


async def test_what_is_resumed_has_the_right_time_and_its_ports(node: Node) -> None:
    """A clock that stood still is set, a counter goes on, a listening port still answers."""
    machine = secrets.token_hex(16)
    await boot(node, machine)
    server = "import http.server as h; h.HTTPServer(('127.0.0.1', 8123), h.SimpleHTTPRequestHandler).serve_forever()"
    await start_command(node, machine, "python3", "-c", server)
    await start_command(node, machine, "sh", "-c", "n=0; while true; do n=$((n+1)); echo $n > /tmp/n; sleep 0.1; done")
    fetch = (
        "import time, urllib.request as u\n"
        "for _ in range(50):\n"
        "    try: print(u.urlopen('http://127.0.0.1:8123').status); break\n"
        "    except OSError: time.sleep(.2)\n"
    )
    assert (await execute(node, machine, "python3", "-c", fetch))[1] == b"200\n"
    before = int((await execute(node, machine, "cat", "/tmp/n"))[1])
    await node.machine_suspend(machine)
    await asyncio.sleep(3)
    await node.machine_resume(machine)
    assert (await node.machine_wait(machine, timeout=BOOT)).state is MachineState.READY
    clock = float((await execute(node, machine, "date", "+%s.%N"))[1])
    assert abs(clock - time.time()) < 2
    assert (await execute(node, machine, "python3", "-c", fetch))[1] == b"200\n"
    # It went on from where it was: nothing ran in the meantime
    after = int((await execute(node, machine, "cat", "/tmp/n"))[1])
    assert before < after
    await gone(node, machine)


async def test_a_fork_and_a_resumed_machine_draw_other_random_numbers(node: Node) -> None:
    """The kernel notices that its memory was copied; nothing that is drawn afterwards is drawn twice."""
    machine, fork = secrets.token_hex(16), secrets.token_hex(16)
    await boot(node, machine)
    draw = "import os, random, uuid\nprint(*(os.urandom(16).hex() for _ in range(200)), uuid.uuid4().hex)"
    await node.machine_fork(machine, spec(fork))
    assert (await node.machine_wait(fork, timeout=BOOT)).state is MachineState.READY
    outputs = await asyncio.gather(*(execute(node, name, "python3", "-c", draw) for name in (machine, fork)))
    values = [value for _code, output in outputs for value in output.decode().split()]
    assert len(values) == len(set(values)) == 402
    noticed = "sudo dmesg | grep -c 'reseeded due to virtual machine fork'"
    before = int((await execute(node, machine, "sh", "-c", noticed))[1])
    assert int((await execute(node, fork, "sh", "-c", noticed))[1]) == before + 1
    await node.machine_suspend(machine)
    await node.machine_resume(machine)
    assert (await node.machine_wait(machine, timeout=BOOT)).state is MachineState.READY
    assert int((await execute(node, machine, "sh", "-c", noticed))[1]) == before + 1
    ids = [await execute(node, name, "cat", "/etc/machine-id") for name in (machine, fork)]
    assert ids[0] != ids[1]
    await gone(node, machine, fork)


async def test_a_damaged_memory_costs_the_memory_only(process: NodeProcess, node: Node) -> None:
    """A resume that cannot be says RESUME_FAILED; the disk is as it was, unflushed writes included, and boots."""
    machine = secrets.token_hex(16)
    await boot(node, machine)
    await execute(node, machine, "sh", "-c", "echo precious > ~/note")
    await node.machine_suspend(machine)
    memory = process.data / "machines" / machine / "memory.save"
    with memory.open("r+b") as file:
        file.truncate(save_image.read(memory).stream_at + 100_000)
    await node.machine_resume(machine)
    info = await node.machine_wait(machine, timeout=BOOT)
    assert (info.state, info.stop_reason) == (MachineState.STOPPED, StopReason.RESUME_FAILED), info
    assert not memory.exists()
    await boot(node, machine)
    assert await execute(node, machine, "cat", "/home/app/note") == (0, b"precious\n")
    await gone(node, machine)


async def test_a_resume_whose_qemu_is_killed_costs_nothing(process: NodeProcess, node: Node) -> None:
    """kill -9 of QEMU while it loads the memory: it is tried once more by itself, and all is there."""
    machine = secrets.token_hex(16)
    await boot(node, machine)
    await execute(
        node, machine, "sh", "-c", "head -c 200000000 /dev/urandom > /dev/shm/much; echo here > /dev/shm/mark"
    )
    await node.machine_suspend(machine)
    memory = process.data / "machines" / machine / "memory.save"
    before = set(process.qemu_pids())
    await node.machine_resume(machine)
    until = time.monotonic() + 30
    while not (fresh := set(process.qemu_pids()) - before):
        assert time.monotonic() < until
        await asyncio.sleep(0.01)
    assert memory.exists()
    for pid in fresh:
        os.kill(pid, 9)
    assert (await node.machine_wait(machine, timeout=BOOT)).state is MachineState.READY
    assert await execute(node, machine, "cat", "/dev/shm/mark") == (0, b"here\n")
    await gone(node, machine)


async def test_a_stop_does_not_wait_for_a_save(process: NodeProcess, node: Node) -> None:
    """Stopped while its memory is written it stops at once, nothing of the memory is left, and its disk boots."""
    machine = secrets.token_hex(16)
    await boot(node, machine, memory_mib=1280)
    await execute(node, machine, "sh", "-c", "echo kept > ~/note; sync; head -c 700000000 /dev/urandom > /dev/shm/much")
    suspending = asyncio.ensure_future(node.machine_suspend(machine))
    memory = process.data / "machines" / machine / "memory.save"
    until = time.monotonic() + 30
    while not (memory.exists() and memory.stat().st_size > 2**20):
        assert time.monotonic() < until
        await asyncio.sleep(0.005)
    assert (await node.machine_stop(machine)).state is MachineState.STOPPED
    with pytest.raises(VmError):
        await suspending
    assert not memory.exists()
    assert (await node.machine_get(machine)).state is MachineState.STOPPED
    await boot(node, machine, memory_mib=1280)
    assert await execute(node, machine, "cat", "/home/app/note") == (0, b"kept\n")
    await gone(node, machine)


async def test_a_suspended_machine_outlives_the_node_and_the_host(process: NodeProcess, node: Node) -> None:
    """kill -9 of the node, and another boot id: a suspended machine is still suspended, and resumes."""
    machine = secrets.token_hex(16)
    await boot(node, machine)
    await execute(node, machine, "sh", "-c", "echo here > /dev/shm/in-memory")
    await node.machine_suspend(machine)
    process.kill()
    record = process.data / "machines" / machine / "machine.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "boot_id": "another"}))
    process.start()
    assert (await node.machine_get(machine)).state is MachineState.SUSPENDED
    await node.machine_resume(machine)
    assert (await node.machine_wait(machine, timeout=BOOT)).state is MachineState.READY
    assert await execute(node, machine, "cat", "/dev/shm/in-memory") == (0, b"here\n")
    # It runs in this start of the host, although it was made in another: the next node adopts it
    process.kill()
    process.start()
    assert (await node.machine_get(machine)).state is MachineState.READY
    assert await execute(node, machine, "cat", "/dev/shm/in-memory") == (0, b"here\n")
    await gone(node, machine)


async def test_forks_share_layers_until_nobody_needs_them(process: NodeProcess, node: Node) -> None:
    """Eight forks of one machine: its chain of layers stays bounded, each has what was there, and all goes at last."""
    machine = secrets.token_hex(16)
    await boot(node, machine)
    layers = process.data / "disks"
    forks = []
    for number in range(8):
        await execute(node, machine, "sh", "-c", f"echo {number} > ~/number; head -c 200000 /dev/urandom > ~/f{number}")
        fork = secrets.token_hex(16)
        await node.machine_fork(machine, spec(fork, hostname=f"fork-{number}"))
        info = await node.machine_wait(fork, timeout=BOOT)
        assert info.state is MachineState.READY, info
        code, output = await execute(node, fork, "sh", "-c", "hostname; cat ~/number; ls ~ | grep -c ^f")
        assert (code, output) == (0, f"fork-{number}\n{number}\n{number + 1}\n".encode())
        forks.append(fork)
        if number % 3 == 2:
            await gone(node, forks.pop(0))
    until = time.monotonic() + BOOT
    record = process.data / "machines" / machine / "machine.json"
    while len(json.loads(record.read_text())["disks"]) > 6:
        assert time.monotonic() < until, "its layers were not merged"
        await asyncio.sleep(0.5)
    sums = await execute(node, machine, "sh", "-c", "cat ~/f? | sha256sum")
    await node.machine_stop(machine)
    await node.machine_forget(machine)
    last = forks[-1]
    assert await execute(node, last, "sh", "-c", "cat ~/f? | sha256sum") == sums
    await node.machine_stop(last)
    await boot(node, last)
    assert await execute(node, last, "sh", "-c", "cat ~/f? | sha256sum") == sums
    await gone(node, *forks)
    needed = {json.loads(path.read_text())["disk"] for path in (process.data / "templates").glob("*/template.json")}
    left = {path.stem for path in layers.iterdir()} - needed
    # What is left are the layers of clones that wait
    assert len(left) <= 2, left


async def test_a_fork_of_a_busy_machine_is_whole(node: Node) -> None:
    """Forked while it writes and calculates: both go on, and every file that was complete is complete in both."""
    machine, fork = secrets.token_hex(16), secrets.token_hex(16)
    await boot(node, machine)
    writer = (
        "import hashlib, os, time\n"
        "n = 0\n"
        "while True:\n"
        "    data = os.urandom(50000); time.sleep(0.02)\n"
        "    open(f'/home/app/part', 'wb').write(data)\n"
        "    os.rename('/home/app/part', f'/home/app/{n:05d}-{hashlib.sha256(data).hexdigest()}')\n"
        "    n += 1\n"
    )
    check = (
        "import hashlib, os\n"
        "names = [n for n in os.listdir('/home/app') if '-' in n]\n"
        "right = lambda n: hashlib.sha256(open('/home/app/' + n, 'rb').read()).hexdigest() == n.split('-')[1]\n"
        "bad = [n for n in names if not right(n)]\n"
        "print(len(names), bad)\n"
    )
    await start_command(node, machine, "python3", "-c", writer)
    await asyncio.sleep(3)
    await node.machine_fork(machine, spec(fork))
    assert (await node.machine_wait(fork, timeout=BOOT)).state is MachineState.READY
    counts = []
    for name in (machine, fork):
        code, output = await execute(node, name, "python3", "-c", check, timeout=120)
        count, bad = output.decode().split(" ", 1)
        assert (code, bad.strip()) == (0, "[]")
        counts.append(int(count))
    assert min(counts) > 3
    await asyncio.sleep(1)
    for name, seen in zip((machine, fork), counts, strict=True):
        later = int((await execute(node, name, "python3", "-c", check, timeout=120))[1].split()[0])
        assert later > seen, "it did not go on"
    await gone(node, machine, fork)


async def test_a_suspend_without_room_leaves_the_machine_running() -> None:
    """On a disk too small for its memory a suspend says HostFull, and the machine runs on."""
    place = Path(tempfile.mkdtemp(prefix="atoll-f-", dir="/tmp"))
    await asyncio.to_thread(run, ["mount", "-t", "tmpfs", "-o", "size=400m", "none", place])
    small = NodeProcess(place, disk_reserve_mib=16)
    await asyncio.to_thread(small.start)
    try:
        node, machine = small.client, secrets.token_hex(16)
        await boot(node, machine)
        with pytest.raises(HostFull, match="no room to keep"):
            await node.machine_suspend(machine)
        assert await execute(node, machine, "echo", "here") == (0, b"here\n")
        await gone(node, machine)
    finally:
        await small._stop_all()
        await asyncio.to_thread(small.stop)
        await asyncio.to_thread(run, ["umount", place])
        shutil.rmtree(place, ignore_errors=True)


async def test_the_node_sweeps_what_is_nobodys_while_it_runs(process: NodeProcess, node: Node) -> None:
    """A layer, an image in memory, a socket, a tap and a namespace from nowhere go within a minute, and so does the
    memory of a machine that has none; what is used stays, and what is no file of ours holds up nothing.
    """
    machine, rested = secrets.token_hex(16), secrets.token_hex(16)
    await boot(node, machine)
    await boot(node, rested)
    await node.machine_stop(rested)
    name = secrets.token_hex(16)
    foreign = process.data / "disks" / "lost+found"  # as on a file system of its own
    foreign.mkdir()
    scratch = Path("/dev/shm") / f"atoll-{process.tag}"
    found = [
        process.data / "disks" / f"{name}.qcow2",
        process.data / "run" / "agents" / f"{name}.sock",
        scratch / f"{name}.save",
        process.data / "machines" / rested / "memory.save",
    ]
    for path in found:
        path.touch()
    namespace = f"atoll-{process.tag}-{name}"
    await asyncio.to_thread(run, ["ip", "netns", "add", namespace])
    found.append(Path("/run/netns") / namespace)
    tap = f"t{process.tag}fffe"
    await asyncio.to_thread(run, ["ip", "tuntap", "add", "dev", tap, "mode", "tap"])
    until = time.monotonic() + 90
    while any(path.exists() for path in found) or Path(f"/sys/class/net/{tap}").exists():
        assert time.monotonic() < until, [path for path in found if path.exists()]
        await asyncio.sleep(1)
    assert await execute(node, machine, "echo", "fine") == (0, b"fine\n")
    assert foreign.is_dir()
    await gone(node, machine, rested)


async def test_a_machine_whose_process_vanished_says_so(process: NodeProcess, node: Node) -> None:
    """QEMU killed while a machine waits in the pool costs the clone only; the pool fills again."""
    await pool_is_ready(node)
    known = {info.machine for info in await node.machine_list()}
    for pid in process.qemu_pids():
        with Path(f"/proc/{pid}/cmdline").open("rb") as file:
            line = file.read()
        if not any(machine.encode() in line for machine in known):
            os.kill(pid, 9)
    machine = secrets.token_hex(16)
    info: MachineInfo = await boot(node, machine)
    assert info.state is MachineState.READY
    assert "ok" in await call(await node.stream_open(machine), "ping")
    await gone(node, machine)
    await pool_is_ready(node)
