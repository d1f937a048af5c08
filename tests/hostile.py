"""Programs with which a guest's root turns against the channel to its host."""

from __future__ import annotations

FLOODER = """
import ctypes, os, signal, time
port = "/dev/" + [n for n in os.listdir("/sys/class/virtio-ports")
                  if open(f"/sys/class/virtio-ports/{n}/name").read().strip() == "atoll.agent"][0]
agent = int(os.popen("pgrep -P 1 | head -1").read())
os.kill(agent, signal.SIGSTOP)
port = os.path.realpath(port)
held = [n for n in os.listdir(f"/proc/{agent}/fd") if os.path.realpath(f"/proc/{agent}/fd/{n}") == port]
# The port can be opened once only: its own descriptor is taken (pidfd_getfd)
fd = ctypes.CDLL(None).syscall(438, os.pidfd_open(agent), int(held[0]), 0)
garbage = os.urandom(1 << 20)
while True:
    try: os.write(fd, garbage)
    except OSError: time.sleep(0.01)
"""
"""Garbage without end; the agent is stopped and says nothing more."""

CLOSER = """
import os, signal, time
# It would end with its agent, and with its sudo
with open("/sys/fs/cgroup/cgroup.procs", "w") as root: root.write("0")
if os.fork(): os._exit(0)
os.setsid()
while True:
    for pid in open("/proc/1/task/1/children").read().split():
        if int(pid) != os.getpid():
            try: os.kill(int(pid), signal.SIGKILL)
            except OSError: pass
    time.sleep(0.005)
"""
"""Kills the agent whenever it starts."""
