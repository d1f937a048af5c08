"""`fetch`: an HTTP request from inside the sandbox, with bodies streamed in both directions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from ide.guest_http import REDIRECTS, GuestClient, GuestRefused, guest_client
from ide.rpc import envelope
from ide.rpc import params as check
from ide.rpc.connection import Connection, Method, new_stream_id
from ide.rpc.envelope import InvalidParams, OperationFailed
from sandboxes.config import config
from sandboxes.services.streams import GuestCall

PIECE = 49_152
"""Bytes of a body in one message."""
_WITHOUT_BODY = (204, 205, 304)
_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "proxy-connection", "te", "trailer"}


async def fetch(connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
    """Answers with status and headers; the body follows on a stream, which the call's abort id ends, too."""
    url = _url(params)
    pid = check.optional_integer(params, "pid")
    stream = check.optional_integer(params, "bodyStreamId")
    headers = _headers(params.get("headers"))
    incoming = None
    if stream is not None and (incoming := connection.incoming.take(stream)) is None:
        raise InvalidParams.one("bodyStreamId", "number", "there is no such stream")

    async def body() -> AsyncIterator[bytes]:
        while incoming is not None and (chunk := await incoming.read()):
            yield chunk

    async def dial(target: dict[str, Any]) -> GuestCall:
        return await connection.guest("dial", target, more=True)

    if pid is not None:
        # To that process in the clear, whatever the address says; its server sees the host that was asked for
        headers.setdefault("Host", url.host_port_subcomponent or "")
        url = url.with_scheme("http")
    async with contextlib.AsyncExitStack() as held:
        if stream is not None:
            held.push_async_callback(connection.incoming.done, stream)
        client = await held.enter_async_context(guest_client(dial, authority=config()["authority"], pid=pid))
        try:
            response = await held.enter_async_context(
                client.session.request(
                    str(params.get("method") or "GET").upper(),
                    url,
                    headers=headers,
                    data=body() if stream is not None else None,
                    allow_redirects=params.get("redirect") != "manual",
                    max_redirects=REDIRECTS,
                )
            )
        except (aiohttp.ClientError, ValueError) as error:
            raise OperationFailed(_failed(url, error)) from error
        answer = _answer(response)
        if response.status in _WITHOUT_BODY or response.method == "HEAD":
            return {**answer, "bodyStreamId": None}
        number = new_stream_id()
        await connection.send(envelope.stream_start(number))
        task = connection.stream_out(number, _body(connection, client, response, number, held.pop_all()))
        abort = params.get("abortId")
        if isinstance(abort, int):
            connection.aborts[abort] = task
            task.add_done_callback(lambda done: connection.no_abort(abort, done))
        return {**answer, "bodyStreamId": number}


def _url(params: dict[str, Any]) -> URL:
    text = check.string(params, "url")
    try:
        url = URL(text)
    except ValueError:
        url = URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise OperationFailed({"constructorName": "TypeError", "message": f"Invalid URL: '{text[:1000]}'"})
    return url.with_fragment(None)


def _headers(value: object) -> CIMultiDict[str]:
    headers: CIMultiDict[str] = CIMultiDict()
    if value is None:
        return headers
    if not isinstance(value, list):
        raise InvalidParams.one("headers", "array of pairs")
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise InvalidParams.one("headers", "array of pairs of strings")
        if pair[0].lower() not in _HOP:
            headers.add(pair[0], pair[1])
    return headers


def _answer(response: aiohttp.ClientResponse) -> dict[str, Any]:
    pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in response.raw_headers]
    coded = any(name == "content-encoding" for name, _ in pairs)
    # What aiohttp has decoded is neither coded any more nor of that length
    dropped = _HOP | ({"content-encoding", "content-length"} if coded else set())
    return {
        "status": response.status if 200 <= response.status < 600 else 502,
        "statusText": "".join(letter for letter in response.reason or "" if letter.isprintable()),
        "headers": [[name, value] for name, value in pairs if name not in dropped],
        "url": str(response.url),
    }


def _body(
    connection: Connection,
    client: GuestClient,
    response: aiohttp.ClientResponse,
    stream: int,
    held: contextlib.AsyncExitStack,
) -> Any:
    async def source() -> None:
        async with held:
            try:
                async for chunk in response.content.iter_chunked(PIECE):
                    # Waits while the client does not read; then the guest is not read either, nor its server
                    await connection.send(envelope.stream_data(stream, chunk))
            except aiohttp.ClientError as error:
                raise OperationFailed(_failed(response.url, error)) from error
            except asyncio.CancelledError:
                if not connection.closing and stream not in connection.given_up:
                    await connection.send(envelope.stream_error(stream, envelope.ABORTED))
                raise
            if client.broken:
                raise OperationFailed(_failed(response.url, "the connection broke off"))

    return source


def _failed(url: URL, error: Exception | str) -> dict[str, Any]:
    """As fetch fails: a TypeError that says why, with the system's error where there is one."""
    cause = error.error if isinstance(error, GuestRefused) else {}
    why = str(cause.get("message") or error or type(error).__name__)
    code = cause.get("code")
    return {
        "constructorName": "TypeError",
        "message": f"error sending request for url ({str(url.with_query(None))[:500]}): {why[:1000]}",
        "code": code if isinstance(code, str) and code != "ENOENT" else None,
    }


METHODS: dict[str, Method] = {"fetch": fetch}
