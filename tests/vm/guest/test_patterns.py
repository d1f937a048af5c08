from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vm.guest.agent.errors import Refusal
from vm.guest.agent.patterns import glob_segment, javascript


@pytest.mark.parametrize(
    ("source", "flags", "yes", "no"),
    [
        (r"\.ts$", "", "a.ts", "a.ts\n"),
        (r"^a", "", "ab", "b\na"),
        (r"^a", "m", "b\na", "ba"),
        (r"(?<year>\d{4})-\k<year>", "", "2024-2024", "2024-2025"),
        (r"[^]x", "", "\nx", "x"),
        (r"a.b", "s", "a\nb", "ab"),
        (r"a.b", "", "axb", "a\nb"),
        (r"\u0041\x42", "", "AB", "ab"),
        (r"\u{1F600}", "u", "😀", "u"),
        (r"[\]/]", "", "]", "x"),
        (r"\d", "", "5", "\u0665"),
        (r"a\/b", "gy", "a/b", "ab"),
        (r"a{", "", "a{", "a"),
        (r"a{2,}", "", "aa", "a"),
        (r"(?<=x)y(?!z)", "", "xy", "xyz"),
        (r"[[&&~~||]", "", "&", "x"),
        (r"\$\-", "", "$-", "$"),
        (r"^[+--]$", "", ",", "."),
        (r"^[--/]$", "", ".", ","),
        (r"^[ac-]$", "", "-", "b"),
        (r"^[a-c-e]$", "", "-", "d"),
        (r"^[\d-x]$", "", "-", "a"),
    ],
)
def test_javascript_means_the_same(source: str, flags: str, yes: str, no: str) -> None:
    """A JavaScript expression finds in Python what it finds in JavaScript."""
    pattern = javascript(source, flags)

    assert pattern.search(yes)
    assert not pattern.search(no)


@pytest.mark.parametrize(("source", "flags"), [("(", ""), ("a", "q"), (r"\p{L}", "u"), ("\\", ""), ("x" * 20_000, "")])
def test_javascript_that_cannot_be_said(source: str, flags: str) -> None:
    """What is invalid, or more than Python can say, is a SyntaxError of the call."""
    with pytest.raises(Refusal) as refused:
        javascript(source, flags)
    assert refused.value.constructor == "SyntaxError"


@given(st.text(max_size=40), st.text(alphabet="gimsuydv", max_size=3))
def test_any_expression_is_compiled_or_refused(source: str, flags: str) -> None:
    """No text makes the translation fail in any other way."""
    with contextlib.suppress(Refusal):
        javascript(source, flags)


@example("[:--]", False)
@given(st.text(alphabet="ab*?[]{}()!@+|,\\-:.^", max_size=24), st.booleans())
def test_any_glob_is_compiled_or_refused(glob: str, extended: bool) -> None:
    """No glob makes the translation fail in any other way."""
    with contextlib.suppress(Refusal):
        glob_segment(glob, extended=extended, ignore_case=False)


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("a*c", "abbc", "abbcd"),
        ("{a,b{c,d}}", "bd", "b"),
        ("!(a|b)", "c", "a"),
        ("!(*.ts).js", "a.js", "a.ts.js"),
        ("*(ab)", "abab", "aba"),
        ("[[:digit:]]x", "4x", "ax"),
        ("[]]", "]", "["),
        (r"\*", "*", "a"),
        ("[a-c]", "b", "-"),
        ("[+--]", ",", "."),
        ("[a-]", "-", "b"),
        ("a,b", "a,b", "a"),
        ("{a", "{a", "a"),
    ],
)
def test_globs_of_one_name(glob: str, yes: str, no: str) -> None:
    """A glob matches whole names."""
    pattern = glob_segment(glob, extended=True, ignore_case=False)

    assert pattern.match(yes)
    assert not pattern.match(no)
