"""The spool keeps what it wrote whatever cuts it off, in order, once, within its bounds, and says what it dropped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vm.egress.journal import Kind, Passage, Verdict, passage_from_json, passage_to_json
from vm.egress.spool import Spool

MACHINE = "0" * 32


def passage(number: int = 0, **fields: object) -> Passage:
    defaults = {
        "began": 1_700_000_000.5,
        "host": f"h{number}.example",
        "port": 443,
        "verdict": Verdict.DENIED,
        "rule": "allow_net",
        "detail": "it is not on the list",
        "sent": number,
        "received": 2,
        "seconds": 0.25,
    }
    return Passage(**{**defaults, **fields})  # type: ignore[arg-type]


def everything(spool: Spool, cursor: str = "", limit: int = 7) -> tuple[list[int], str]:
    """`sent` of every entry after the cursor, asked for piece by piece; numbers must grow."""
    found: list[int] = []
    last = 0
    while (batch := spool.read(cursor, limit)).entries:
        for entry in batch.entries:
            assert entry.number > last
            last = entry.number
            found.append(entry.passage.sent)
        cursor = batch.cursor
    assert batch.cursor in (cursor, f"{spool.id}:0")
    return found, cursor


def filled(place: Path, numbers: range, **bounds: int) -> Spool:
    spool = Spool(place, **bounds)
    for number in numbers:
        spool.add(MACHINE, passage(number))
        if number % 50 == 0:
            spool.flush()
    spool.flush()
    return spool


def test_what_was_added_is_read_in_order_from_any_place(tmp_path: Path) -> None:
    spool = filled(tmp_path / "s", range(120), segment=4000)
    assert len(list((tmp_path / "s").glob("*.jsonl"))) > 3
    found, cursor = everything(spool)
    assert found == list(range(120))
    assert everything(spool, cursor)[0] == []
    middle = spool.read("", 60).cursor
    assert everything(spool, middle)[0] == list(range(60, 120))
    for strange in ("", "other:99999999999999999", "x", f"{spool.id}:no"):
        assert everything(spool, strange)[0] == list(range(120))
    spool.close()


def test_it_is_written_by_itself(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s")
    spool.add(MACHINE, passage(1))
    until = time.monotonic() + 5
    while not everything(spool)[0]:
        assert time.monotonic() < until
        time.sleep(0.02)
    spool.close()
    spool.close()
    again = Spool(tmp_path / "s")
    assert everything(again)[0] == [1]
    again.close()


@settings(deadline=None)
@given(cut=st.integers(min_value=0, max_value=4000), more=st.binary(max_size=40))
def test_a_kill_at_any_byte_costs_the_line_it_tore(
    cut: int, more: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The newest segment ends anywhere, also in rubbish: what was whole is read, and what comes next is not lost."""
    place = tmp_path_factory.mktemp("spool") / "s"
    filled(place, range(20), segment=10_000).close()
    (path,) = place.glob("*.jsonl")
    content = path.read_bytes()
    head = content.index(b"\n") + 1
    kept = content[:cut]
    path.write_bytes(kept + more.replace(b"\n", b""))
    whole = max(0, kept[head:].count(b"\n")) if len(kept) >= head else 0
    spool = Spool(place, segment=10_000)
    before, cursor = everything(spool)
    if cut < len(content):
        assert before == list(range(whole))
    else:
        assert before == list(range(20))
    spool.add(MACHINE, passage(99))
    spool.flush()
    assert everything(spool, cursor)[0] == [99]
    spool.close()


def test_numbers_grow_over_a_loss_of_power(tmp_path: Path) -> None:
    """What was read and then lost with the host's memory gives its numbers to nobody: a cursor passes nothing over."""
    spool = filled(tmp_path / "s", range(10))
    _found, cursor = everything(spool)
    spool.close()
    (path,) = (tmp_path / "s").glob("*.jsonl")
    path.write_bytes(path.read_bytes()[:200])
    again = Spool(tmp_path / "s")
    again.add(MACHINE, passage(77))
    again.flush()
    assert everything(again, cursor)[0] == [77]
    again.close()


def test_it_is_bounded_and_counts_what_nobody_had_read(tmp_path: Path) -> None:
    """The oldest goes; only what nobody had asked for is called dropped, and that is known to the next opening."""
    spool = Spool(tmp_path / "s", limit=20_000, segment=4000)
    for number in range(400):
        spool.add(MACHINE, passage(number))
        if number % 20 == 19:
            spool.flush()
    batch = spool.read("", 1000)
    kept = [entry.passage.sent for entry in batch.entries]
    assert kept == list(range(kept[0], 400))
    assert batch.dropped == kept[0] > 0
    assert sum(path.stat().st_size for path in (tmp_path / "s").iterdir()) < 26_000
    spool.read(batch.cursor, 1)
    for number in range(400, 440):
        spool.add(MACHINE, passage(number))
    spool.flush()
    assert spool.read(batch.cursor, 1000).dropped == batch.dropped
    spool.close()
    again = Spool(tmp_path / "s", limit=20_000, segment=4000)
    assert again.read("", 1).dropped == batch.dropped
    again.close()


def test_one_machine_s_flood_leaves_room_for_the_others(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s")
    spool._closing.set()  # nothing is written but by this test
    for number in range(20_000):
        spool.add(MACHINE, passage(number))
    spool.add(MACHINE, passage(1, kind=Kind.ALERT))
    spool.add("1" * 32, passage(1))
    spool.flush()
    found = spool.read("", 2000)
    assert sum(entry.machine == MACHINE for entry in found.entries) == 501
    assert found.entries[500].passage.kind is Kind.ALERT
    assert sum(entry.machine != MACHINE for entry in found.entries) == 1
    assert found.dropped == 19_500
    spool.close()


def test_a_full_disk_loses_what_came_then_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = filled(tmp_path / "s", range(5))
    write = os.write

    def half(file: int, data: bytes) -> int:
        return write(file, data[: len(data) // 2])

    spool.add(MACHINE, passage(5))
    monkeypatch.setattr(os, "write", half)
    spool.flush()
    monkeypatch.undo()
    spool.add(MACHINE, passage(6))
    spool.flush()
    assert everything(spool)[0] == [0, 1, 2, 3, 4, 6]
    assert spool.read("", 1).dropped == 1
    spool.close()


def test_an_answer_is_bounded_in_bytes(tmp_path: Path) -> None:
    """Texts are cut, and what does not fit one answer comes with the next."""
    spool = Spool(tmp_path / "s")
    for number in range(1000):
        spool.add(MACHINE, passage(number, path="\u00e9" * 5000, detail="\u00e9" * 5000))
        if number % 400 == 399:
            spool.flush()
    spool.flush()
    batch = spool.read("", 1000)
    assert 100 < len(batch.entries) < 1000
    assert len(batch.entries[0].passage.path) == 500
    assert everything(spool, limit=1000)[0] == list(range(1000))
    spool.close()


def test_kill_9_loses_half_a_second_at_most(tmp_path: Path) -> None:
    """A process that adds without end is killed: all but the last half second is there."""
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from tests.vm.egress.test_spool import passage, MACHINE\n"
        "from vm.egress.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1]))\n"
        "number = 0\n"
        "while True:\n"
        "    spool.add(MACHINE, passage(number)); number += 1\n"
        "    print(number, time.monotonic(), flush=True)\n"
        "    time.sleep(0.002)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    added: list[tuple[int, float]] = []
    while len(added) < 700:
        number, at = child.stdout.readline().split()
        added.append((int(number), float(at)))
    child.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    child.wait()
    child.stdout.close()
    spool = Spool(tmp_path / "s")
    found = everything(spool, limit=1000)[0]
    spool.close()
    assert found == list(range(len(found)))
    assert len(found) >= sum(at < killed - 0.5 for _number, at in added)


@given(
    data=st.fixed_dictionaries(
        {
            "host": st.text(max_size=600),
            "rule": st.text(max_size=20),
            "path": st.text(max_size=20),
            "status": st.integers(0, 999),
            "verdict": st.sampled_from(Verdict),
        }
    )
)
def test_a_passage_crosses_the_wire(data: dict[str, object]) -> None:
    made = passage(3, **data)
    read = passage_from_json({**passage_to_json(made), "of another version": 1})
    assert read.host == made.host[:500]
    assert (read.rule, read.path, read.status, read.verdict) == (made.rule, made.path, made.status, made.verdict)
