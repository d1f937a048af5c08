"""The page's messages are read strictly: what is not of the protocol is refused, never guessed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ide.xterm_bridge import messages
from ide.xterm_bridge.messages import BadMessage


def test_each_message_of_the_page_is_understood() -> None:
    assert messages.parse('{"type":"open","cols":80,"rows":24}') == messages.Open(80, 24, None)
    assert messages.parse('{"type":"attach","id":"t1","cols":80,"rows":24}') == messages.Attach("t1", None, 80, 24)
    assert messages.parse('{"type":"attach","id":"t1","offset":0,"cols":8,"rows":2}') == messages.Attach("t1", 0, 8, 2)
    assert messages.parse('{"type":"resize","cols":1,"rows":1000}') == messages.Resize(1, 1000)
    assert messages.parse('{"type":"ack","offset":7}') == messages.Ack(7)
    assert messages.parse('{"type":"close","id":"t1"}') == messages.Close("t1")
    assert messages.parse('{"type":"list"}') == messages.ListTerminals()
    assert messages.parse('{"type":"ping"}') == messages.Ping()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"type":"shout"}',
        '{"type":["open"]}',
        '{"type":"resize","cols":0,"rows":24}',
        '{"type":"resize","cols":true,"rows":24}',
        '{"type":"resize","cols":1e9,"rows":24}',
        '{"type":"attach","id":"","cols":80,"rows":24}',
        '{"type":"attach","id":"t","offset":-1,"cols":80,"rows":24}',
        '{"type":"close","id":7}',
        '{"type":"ping","pad":"' + "x" * 5000 + '"}',
        "[" * 4000,
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BadMessage):
        messages.parse(text)


@given(st.text(max_size=200) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    try:
        messages.parse(text)
    except BadMessage:
        return
