"""Serves built front-end files through WhiteNoise in a way that an ASGI server can stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, BinaryIO

from asgiref.sync import sync_to_async
from django.http import HttpRequest
from django.http.response import HttpResponseBase, StreamingHttpResponse
from whitenoise.middleware import WhiteNoiseMiddleware

CHUNK = 64 * 1024


class StaticFiles(WhiteNoiseMiddleware):  # type: ignore[misc]
    """WhiteNoise, whose file responses would otherwise be read whole into memory under ASGI."""

    @staticmethod
    def serve(static_file: Any, request: HttpRequest) -> HttpResponseBase:
        """One file, or the 304 or range of it that the request asks for."""
        found = static_file.get_response(request.method, request.META)
        response = StreamingHttpResponse(_chunks(found.file) if found.file is not None else _nothing())
        response.status_code = int(found.status)
        # WhiteNoise knows each file's type; Django's default must not stay beside it.
        del response["Content-Type"]
        for key, value in found.headers:
            response[key] = value
        return response


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


async def _chunks(file: BinaryIO) -> AsyncIterator[bytes]:
    try:
        while data := await sync_to_async(file.read, thread_sensitive=False)(CHUNK):
            yield data
    finally:
        file.close()
