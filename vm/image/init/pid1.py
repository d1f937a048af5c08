"""PID 1 of the guest: prepares the system, keeps the agent running, reaps what is orphaned, and ends the machine.

It imports the whole agent and then forks it, so that a new agent needs no file: a guest whose disk was emptied or whose
agent was killed for want of memory still answers. Nothing here may raise: the kernel panics when PID 1 ends.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
import time

sys.path.insert(0, "/usr/lib/atoll")
sys.modules["ssl"] = None  # type: ignore[assignment]  # asyncio would load OpenSSL: 0.1 s and 5 MB for nothing

import resource  # noqa: E402
import traceback  # noqa: E402

from vm.guest.agent.agent import say, serve  # noqa: E402
from vm.guest.agent.settings import of_machine  # noqa: E402

PORT = "atoll.agent"
CGROUP = "/sys/fs/cgroup"
USER_PIDS = 4096
AGENT_RESERVE = 64 * 2**20  # bytes of memory that processes of the user never get
AGENT_OOM_SCORE = -999

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_RDONLY = 2, 4, 8, 32, 1
RB_POWER_OFF = 0x4321FEDC
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
SIOCSIFADDR, SIOCSIFNETMASK, SIOCADDRT, RTF_UP, RTF_GATEWAY = 0x8916, 0x891C, 0x890B, 1, 2
CARD, ADDRESS, NETMASK, GATEWAY = b"eth0", "10.0.0.2", "255.255.255.252", "10.0.0.1"
ANY = "0.0.0.0"  # noqa: S104

libc = ctypes.CDLL(None, use_errno=True)


def write(path: str, text: str) -> bool:
    """Write to one of the kernel's files; False (and a line of log) if it refuses."""
    try:
        fd = os.open(path, os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        say(f"{path}: {error.strerror}")
        return False
    return True


def mount(kind: str, target: str, flags: int, options: str = "") -> None:
    """Mount a file system of the kernel's; a failure is logged, and the machine goes on."""
    try:
        os.makedirs(target, exist_ok=True)
    except OSError as error:
        say(f"{target}: {error.strerror}")
    if libc.mount(kind.encode(), target.encode(), kind.encode(), flags, options.encode()) != 0:
        say(f"mount {target}: {os.strerror(ctypes.get_errno())}")


def prepare() -> None:
    """Everything that has to be there before the first process of the user."""
    safe = MS_NOSUID | MS_NODEV
    mount("sysfs", "/sys", safe | MS_NOEXEC)
    mount("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666")
    mount("tmpfs", "/dev/shm", safe, "mode=1777")  # noqa: S108
    mount("tmpfs", "/run", safe, "mode=755,size=20%")
    mount("cgroup2", CGROUP, safe | MS_NOEXEC)
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        try:
            os.symlink(f"/proc/self/fd{target}", f"/dev/{name}")
        except OSError as error:
            say(f"/dev/{name}: {error.strerror}")
    try:
        os.mkdir("/run/lock", 0o1777)
        os.chmod("/run/lock", 0o1777)  # noqa: S103
    except OSError as error:
        say(f"/run/lock: {error.strerror}")
    libc.sethostname(b"sandbox", 7)
    # /etc has links to them; the agent says more
    for name, text in (("hostname", "sandbox\n"), ("machine-id", "")):
        with open(f"/run/{name}", "w") as file:
            file.write(text)
    loopback()
    network()
    groups()


def loopback() -> None:
    """Bring the loopback interface up."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            bring_up(control, b"lo")
    except OSError as error:
        say(f"loopback: {error.strerror}")


def network() -> None:
    """Give the card the address that every machine has in its own network; its gateway is all there is in it."""
    # Nothing out there speaks IPv6: a guest that tried would only wait
    write(f"/proc/sys/net/ipv6/conf/{CARD.decode()}/disable_ipv6", "1")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, SIOCSIFADDR, struct.pack("16s16s8x", CARD, inet(ADDRESS)))
            fcntl.ioctl(control, SIOCSIFNETMASK, struct.pack("16s16s8x", CARD, inet(NETMASK)))
            bring_up(control, CARD)
            # struct rtentry: to anywhere
            route = struct.pack("8x16s16s16sH", inet(ANY), inet(GATEWAY), inet(ANY), RTF_UP | RTF_GATEWAY)
            fcntl.ioctl(control, SIOCADDRT, route.ljust(120, b"\0"))
    except OSError as error:
        say(f"network: {error.strerror}")


def inet(address: str) -> bytes:
    """struct sockaddr_in."""
    return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))


def bring_up(control: socket.socket, card: bytes) -> None:
    """Set an interface up. OSError."""
    flags = struct.unpack("16sh14x", fcntl.ioctl(control, SIOCGIFFLAGS, struct.pack("16sh14x", card, 0)))[1]
    fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", card, flags | IFF_UP))


def groups() -> None:
    """Two groups: the agent has its share of CPU and memory whatever the processes of the user do."""
    write(f"{CGROUP}/cgroup.subtree_control", "+cpu +memory +pids")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("agent", "user"):
        try:
            os.mkdir(f"{CGROUP}/{name}")
        except OSError as error:
            say(f"{CGROUP}/{name}: {error.strerror}")
    write(f"{CGROUP}/agent/cpu.weight", "1000")
    write(f"{CGROUP}/user/pids.max", str(USER_PIDS))
    write(f"{CGROUP}/user/memory.max", str(max(total - AGENT_RESERVE, total // 2)))


def port() -> str:
    """The device of the agent's port, waiting until it is there."""
    while True:
        try:
            for name in os.listdir("/sys/class/virtio-ports"):
                with open(f"/sys/class/virtio-ports/{name}/name") as label:
                    if label.read().strip() == PORT:
                        return f"/dev/{name}"
        except OSError:
            pass
        time.sleep(0.01)


def run_agent(device: str, *, restarted: bool) -> None:
    """The child's whole life."""
    os.setsid()
    write(f"{CGROUP}/agent/cgroup.procs", "0")
    write("/proc/self/oom_score_adj", str(AGENT_OOM_SCORE))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    fd = os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    serve(fd, of_machine(), reopen=True, restarted=restarted)


def start_agent(device: str, *, restarted: bool) -> int:
    """Fork an agent; its pid, or 0 if that was not possible."""
    try:
        pid = os.fork()
    except OSError as error:
        say(f"fork: {error.strerror}")
        return 0
    if pid == 0:
        try:
            run_agent(device, restarted=restarted)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return pid


def power_off(agent: int) -> None:
    """End the machine: processes first, then the disk, then the power."""
    if agent:
        os.kill(agent, signal.SIGKILL)  # it would not listen to less, and its spawner follows it
    os.kill(-1, signal.SIGTERM)
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and reap_any():
        time.sleep(0.02)
    os.kill(-1, signal.SIGKILL)
    os.sync()
    libc.mount(b"none", b"/", None, MS_REMOUNT | MS_RDONLY, None)
    libc.reboot(RB_POWER_OFF)


def reap_any() -> bool:
    """Reap what has ended; whether any child is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def watch() -> None:
    """The rest of PID 1's life."""
    wanted = (signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    # A handler there must be, or PID 1 is never told
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    device = port()
    agent = start_agent(device, restarted=False)
    while True:
        got = signal.sigtimedwait(wanted, 60 if agent else 0.2)
        if got is not None and got.si_signo in (signal.SIGUSR1, signal.SIGUSR2):
            power_off(agent)
        try:
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                if pid == agent:
                    agent = 0
        except ChildProcessError:
            agent = 0
        if not agent:
            say("the agent has ended: its processes are killed, and it is started again")
            write(f"{CGROUP}/user/cgroup.kill", "1")
            time.sleep(0.1)
            agent = start_agent(device, restarted=True)


def main() -> None:
    """Never returns."""
    try:
        log = os.open("/dev/kmsg", os.O_WRONLY | os.O_CLOEXEC)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.dup2(log, 2)
    except OSError:
        pass
    os.umask(0o022)
    # Inherited by everything; a thousand open files is little for servers and watchers
    resource.setrlimit(resource.RLIMIT_NOFILE, (65_536, 524_288))
    prepare()
    while True:
        try:
            watch()
        except BaseException:
            traceback.print_exc()
            time.sleep(1)


if __name__ == "__main__":
    main()
