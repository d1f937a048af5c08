"""The header of save images: read, written, moved, and refused when it is not whole."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vm.libvirt import save_image
from vm.libvirt.save_image import NotAnImage, SaveImage

XML = "<domain><name>a</name></domain>"
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
cookies = st.binary().map(lambda data: data.replace(b"\0", b""))


@given(texts, cookies, st.booleans(), st.binary(max_size=100))
def test_what_is_written_is_read(xml: str, cookie: bytes, running: bool, stream: bytes) -> None:
    """Any XML and cookie come back, and the stream begins where the header says."""
    head = save_image.header(SaveImage(xml, cookie, running, 0))
    image = save_image.parse(head + stream)
    assert (image.xml, image.cookie, image.was_running) == (xml, cookie, running)
    assert (head + stream)[image.stream_at :] == stream


@given(texts, cookies, st.integers(0, 500))
def test_room_is_filled_to_the_byte(xml: str, cookie: bytes, more: int) -> None:
    """With room given the header is exactly that long, and still says the same."""
    image = SaveImage(xml, cookie, True, 0)
    room = len(save_image.header(image)) + more
    head = save_image.header(image, room=room)
    assert len(head) == room
    assert save_image.parse(head) == replace(image, stream_at=room)
    with pytest.raises(ValueError, match="too long"):
        save_image.header(image, room=len(save_image.header(image)) - 1)


@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    """Nothing but NotAnImage, whatever a file holds."""
    with pytest.raises(NotAnImage):
        save_image.parse(data)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"LibvirtQemudPart" + bytes(300), id="half written"),
        pytest.param(b"LibvirtQemudSave" + struct.pack("<5I14I", 3, 10, 0, 0, 0, *[0] * 14) + bytes(10), id="version"),
        pytest.param(b"LibvirtQemudSave" + struct.pack("<5I14I", 2, 10, 0, 1, 0, *[0] * 14) + bytes(10), id="packed"),
        pytest.param(b"LibvirtQemudSave" + struct.pack("<5I14I", 2, 99, 0, 0, 0, *[0] * 14) + bytes(10), id="short"),
        pytest.param(b"LibvirtQemudSave" + struct.pack("<5I14I", 2, 10, 0, 0, 11, *[0] * 14) + bytes(10), id="cookie"),
        pytest.param(
            b"LibvirtQemudSave" + struct.pack("<5I14I", 2, 4, 0, 0, 0, *[0] * 14) + b"\xff\xfe\xfd\xfc", id="text"
        ),
    ],
)
def test_impossible_headers_are_refused(head: bytes) -> None:
    """A half-written image, another version, a compressed one, lengths that cannot be."""
    with pytest.raises(NotAnImage):
        save_image.parse(head)


def test_a_clone_has_the_stream_and_other_xml(tmp_path: Path) -> None:
    """The stream is moved to behind a header of another length; the source stays as it was."""
    source, target = tmp_path / "source", tmp_path / "target"
    stream = bytes(range(256)) * 8000
    source.write_bytes(save_image.header(SaveImage(XML, b"<cookie/>", True, 0)) + stream)
    before = source.read_bytes()
    save_image.clone(source, target, XML * 50)
    image = save_image.read(target)
    assert (image.xml, image.cookie) == (XML * 50, b"<cookie/>")
    assert target.read_bytes()[image.stream_at :] == stream
    assert source.read_bytes() == before


def test_a_header_is_replaced_in_place_where_it_fits(tmp_path: Path) -> None:
    """Shorter XML leaves the stream where it is; longer XML is refused, and changes nothing."""
    path = tmp_path / "image"
    path.write_bytes(save_image.header(SaveImage(XML, b"<cookie/>", True, 0)) + b"stream")
    at = save_image.read(path).stream_at
    assert save_image.rewrite_in_place(path, "<domain/>")
    image = save_image.read(path)
    assert (image.xml, image.cookie, image.stream_at) == ("<domain/>", b"<cookie/>", at)
    assert path.read_bytes()[at:] == b"stream"
    before = path.read_bytes()
    assert not save_image.rewrite_in_place(path, XML * 2)
    assert path.read_bytes() == before
