"""Heads are read one way only, and bodies end where they say."""

from __future__ import annotations

import random

import pytest

from ide.gateway.http1 import (
    BadMessage,
    Body,
    Chunks,
    Ends,
    host_of,
    parse_request,
    parse_response,
    request_head,
    response_head,
)

GET = b"GET /a?b=c HTTP/1.1\r\nHost: x.example:8443\r\n"


def test_a_request() -> None:
    """Everything of it is there, and goes on but for what is about this connection alone."""
    request = parse_request(
        GET
        + b"Accept: */*\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\n\r\n"
    )

    assert (request.method, request.target, request.host, request.keeps) == (b"GET", b"/a?b=c", "x.example", True)
    assert request.body() == Body(Ends.NONE)
    assert request_head(request, ((b"X-Forwarded-Proto", b"https"),)) == (
        GET + b"Accept: */*\r\nTE: trailers\r\nX-Forwarded-Proto: https\r\n\r\n"
    )


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        b"GET a HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\nY: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\n\r\n",
    ],
)
def test_what_is_no_request(head: bytes) -> None:
    """Whatever another reader might read otherwise is refused."""
    with pytest.raises(BadMessage):
        parse_request(head)


@pytest.mark.parametrize(
    "more",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: xchunked\r\n",
    ],
)
def test_bodies_that_could_end_in_two_places(more: bytes) -> None:
    """A request that two servers could divide differently smuggles nothing: it is refused."""
    with pytest.raises(BadMessage):
        parse_request(GET + more + b"\r\n").body()


def test_targets() -> None:
    """The absolute form is taken for its path; `*` only for OPTIONS."""
    assert parse_request(b"GET http://x?q HTTP/1.1\r\nHost: x\r\n\r\n").target == b"/?q"
    assert parse_request(b"GET https://x/p HTTP/1.1\r\nHost: x\r\n\r\n").target == b"/p"
    assert parse_request(b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n").target == b"*"
    assert [host_of(one) for one in (b"A.b:1", b"[::1]:5", b"", b"a")] == ["a.b", "[::1]", "", "a"]


@pytest.mark.parametrize(
    ("head", "method", "body"),
    [
        (b"200 OK\r\nContent-Length: 3\r\n", b"GET", Body(Ends.LENGTH, 3)),
        (b"200 OK\r\nContent-Length: 3\r\n", b"HEAD", Body(Ends.NONE)),
        (b"204 No Content\r\nContent-Length: 3\r\n", b"GET", Body(Ends.NONE)),
        (b"304 Not Modified\r\nContent-Length: 3\r\n", b"GET", Body(Ends.NONE)),
        (b"200 OK\r\nTransfer-Encoding: chunked\r\n", b"GET", Body(Ends.CHUNKED)),
        (b"200 \r\n", b"GET", Body(Ends.CLOSE)),
        (b"200\r\n", b"GET", Body(Ends.CLOSE)),
        (b"101 Switching\r\nUpgrade: x\r\n", b"GET", Body(Ends.NONE)),
    ],
)
def test_where_an_answer_ends(head: bytes, method: bytes, body: Body) -> None:
    """By status, method and headers, as RFC 9112 has it."""
    assert parse_response(b"HTTP/1.1 " + head + b"\r\n").body(method) == body


def test_an_answer_with_two_lengths() -> None:
    """Chunks go before a length, which is not passed on: clients differ in which they believe."""
    response = parse_response(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert response.body(b"GET") == Body(Ends.CHUNKED)
    assert b"Length" not in response_head(response, ())


@pytest.mark.parametrize("head", [b"HTTP/1.1 20 OK", b"HTTP/1.1 200 OK\r\nbad", b"SSH-2.0-x", b"HTTP/1.1 099 x"])
def test_what_is_no_answer(head: bytes) -> None:
    """The visitor is not at fault: 502."""
    with pytest.raises(BadMessage) as raised:
        parse_response(head + b"\r\n\r\n")
    assert raised.value.status == 502


BODY = b"5;ext=1\r\nhello\r\n00A \r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"


def test_chunks_end_where_they_say() -> None:
    """However they are cut, the end is found at the same byte."""
    for seed in range(200):
        cut = random.Random(seed)
        data, chunks, used = BODY + b"GET /next", Chunks(), 0
        while not chunks.done:
            piece = data[used : used + cut.randrange(1, 12)]
            used += chunks.feed(piece)
        assert used == len(BODY)


@pytest.mark.parametrize(
    "body",
    [
        b"5\r\nhelloX\r\n",
        b"5\nhello\r\n",
        b"g\r\n",
        b"\r\n",
        b"-1\r\n",
        b"0x5\r\n",
        b"0\r\nno trailer\r\n\r\n",
        b"0\r\nX: y\n\r\n",
        b"1" * 5000,
        b"5\r\nhello\n\n0\r\n\r\n",
        b"0\r\n" + b"X: y\r\n" * 5000,
    ],
)
def test_what_is_no_chunk(body: bytes) -> None:
    """Sizes, line ends and lengths of lines are held to."""
    with pytest.raises(BadMessage):
        Chunks().feed(body)
