"""The QEMU that a pid file is about is ended, and never whoever has its number by now."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vm.node.process import after_others, qemu_end, qemu_kill, qemu_like_others, turn_after_others
from vm.storage.layout import Layout

NAME = "atoll-0a1b-" + "5" * 32
type End = Callable[[Layout, str], object]
type Begin = Callable[[str], "subprocess.Popen[bytes]"]


ENDS: list[End] = [qemu_kill, lambda layout, name: qemu_end(layout, name, 30)]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path)
    (made.libvirt / "run" / "qemu").mkdir(parents=True)
    return made


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Starts a process with an argument that QEMU would have."""
    begun = []

    def begin(argument: str) -> subprocess.Popen[bytes]:
        program = "print(flush=True); import time; time.sleep(60)"
        process = subprocess.Popen([sys.executable, "-c", program, "-name", argument], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()  # from here on its command line is its own
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def pid_file(layout: Layout) -> Path:
    return layout.libvirt / "run" / "qemu" / f"{NAME}.pid"


def test_the_process_of_that_name_is_killed(layout: Layout, begin: Begin) -> None:
    process = begin(f"guest={NAME},debug-threads=on")
    pid_file(layout).write_text(str(process.pid))
    qemu_kill(layout, NAME)
    assert process.wait(10) == -signal.SIGKILL


def test_whoever_ends_it_waits_until_it_is_collected(layout: Layout, begin: Begin) -> None:
    """Ended is not enough: what is left of it until somebody asked for its exit code is a process to libvirt."""
    process = begin(f"guest={NAME},debug-threads=on")
    pid_file(layout).write_text(str(process.pid))
    collector = threading.Timer(0.3, process.wait)
    collector.start()
    assert qemu_end(layout, NAME, 30)
    assert not Path(f"/proc/{process.pid}").exists()
    collector.join()
    assert process.returncode == -signal.SIGTERM


def test_one_that_does_not_end_is_not_waited_for_long(layout: Layout, begin: Begin) -> None:
    process = begin(f"guest={NAME},debug-threads=on")
    pid_file(layout).write_text(str(process.pid))
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    assert not qemu_end(layout, NAME, 0.2)
    assert process.poll() is None


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("argument", ["something else", f"guest={NAME}0,debug-threads=on", "guest=atoll-0a1b-6,x"])
def test_a_number_that_is_anothers_by_now_is_left_alone(layout: Layout, begin: Begin, argument: str, end: End) -> None:
    """Also that of another machine, and of one whose name only begins like it."""
    process = begin(argument)
    pid_file(layout).write_text(str(process.pid))
    end(layout, NAME)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)


@pytest.mark.parametrize("end", ENDS)
def test_without_a_process_nothing_happens(layout: Layout, begin: Begin, end: End) -> None:
    """No file, an empty one, nonsense, and the number of a process that has ended."""
    end(layout, NAME)
    ended = begin(f"guest={NAME},x")
    ended.kill()
    ended.wait()
    for text in ("", "x", "-1", str(ended.pid)):
        pid_file(layout).write_text(text)
        end(layout, NAME)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a process back its turn")
def test_what_is_nobodys_has_its_turn_after_others(layout: Layout, begin: Begin) -> None:
    process = begin(f"guest={NAME},debug-threads=on")
    pid_file(layout).write_text(str(process.pid))
    turn_after_others(process.pid)
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == 5
    qemu_like_others(layout, NAME)
    assert os.getpriority(os.PRIO_PROCESS, process.pid) == 0
    process.kill()
    process.wait()
    turn_after_others(process.pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a thread back its turn")
def test_a_thread_has_its_turn_after_others_for_a_while() -> None:
    """That thread alone, and also where its work fails."""

    @after_others()
    def fail() -> None:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        found.append(os.getpriority(os.PRIO_PROCESS, threading.main_thread().native_id or 0))
        raise ZeroDivisionError

    def work() -> int:
        with pytest.raises(ZeroDivisionError):
            fail()
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    found: list[int] = []
    usual = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(work).result()
    assert found == [max(5, usual), usual]
    assert later == usual
