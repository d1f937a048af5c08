"""What the pool should hold: by demand, between floor and ceiling, never past its memory budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vm.node.demand import HORIZON, PER_CLONE, Demand, Size, Step, next_step, wanted

USUAL, SMALL, LARGE = Size(1280, 2, 10), Size(768, 2, 10), Size(4096, 2, 10)
sizes = st.sampled_from([USUAL, SMALL, LARGE])
counts = st.dictionaries(sizes, st.integers(0, 200))


def test_recent_demand_is_forgotten() -> None:
    """Creates count for a minute."""
    demand = Demand()
    for at in (0.0, 1.0, 50.0):
        demand.note(USUAL, at)
    assert demand.recent(55.0) == {USUAL: 3}
    assert demand.recent(HORIZON + 10) == {USUAL: 1}
    assert demand.recent(1000.0) == {}


@given(counts, st.integers(0, 10), st.integers(0, 20), st.integers(0, 20_000), st.booleans())
def test_never_past_ceiling_or_budget(
    recent: dict[Size, int], floor: int, ceiling: int, budget: int, warm: bool
) -> None:
    """Whatever is asked for, the clones granted fit into the ceiling and the memory budget."""
    granted = wanted(recent=recent, warm=USUAL if warm else None, floor=floor, ceiling=ceiling, budget_mib=budget)
    assert sum(granted.values()) <= ceiling
    assert sum(size.memory_mib // 2 * count for size, count in granted.items()) <= budget
    assert all(count >= 0 for count in granted.values())


def test_the_floor_holds_without_demand_and_demand_raises_it() -> None:
    """The usual size has its floor; more creates grant more; other sizes come by demand only, after it."""

    def ask(recent: dict[Size, int]) -> dict[Size, int]:
        return wanted(recent=recent, warm=USUAL, floor=2, ceiling=6, budget_mib=6000)

    assert ask({}) == {USUAL: 2}
    assert ask({USUAL: 3 * PER_CLONE}) == {USUAL: 3}
    assert ask({USUAL: 1000, SMALL: 1}) == {USUAL: 6, SMALL: 0}
    assert ask({SMALL: 1}) == {USUAL: 2, SMALL: 1}


@given(counts, counts, st.lists(sizes), st.lists(sizes))
def test_steps_lead_to_what_was_granted(
    granted: dict[Size, int], waiting: dict[Size, int], baked: list[Size], to_bake: list[Size]
) -> None:
    """Taking the steps one after the other ends, with every size that has a template at what was granted."""
    baked, waiting = list(baked), dict(waiting)
    for _ in range(3000):
        step = next_step(granted=granted, waiting=waiting, baked=baked, to_bake=to_bake)
        if step is None:
            break
        if step.what == "drop":
            waiting[step.size] -= 1
        elif step.what == "bake":
            assert step.size not in baked
            baked.append(step.size)
        else:
            assert step.size in baked
            waiting[step.size] = waiting.get(step.size, 0) + 1
    else:
        raise AssertionError("it does not end")
    assert all(waiting.get(size, 0) <= granted.get(size, 0) for size in waiting)
    assert all(waiting.get(size, 0) == granted[size] for size in granted if size in baked)


def test_memory_is_given_back_before_more_is_taken() -> None:
    """A clone too many of one size goes before one of another size is made."""
    step = next_step(granted={USUAL: 1, SMALL: 1}, waiting={USUAL: 2}, baked=[USUAL, SMALL], to_bake=[])
    assert step == Step("drop", USUAL)
