"""Files and directories of a sandbox as streamed downloads; what a guest sends is never shown by a browser."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from posixpath import basename, dirname
from typing import Any

from django.http import StreamingHttpResponse
from django.utils.http import content_disposition_header

from sandboxes.errors import Conflict, DomainError, Invalid, NotFound
from sandboxes.models import Sandbox
from sandboxes.permissions import Actor
from sandboxes.services.streams import GuestCall, GuestFailed, GuestInvalid, guest_call


async def file_response(*, sandbox: Sandbox, actor: Actor, path: str) -> StreamingHttpResponse:
    """The file, with its length. NotFound if there is none, Invalid for a directory."""
    call = await guest_call(sandbox=sandbox, method="readFile", params={"path": path}, actor=actor)
    said = await _reply(call)
    size = said.get("size") if isinstance(said, dict) else None
    response = download(_output([call]), basename(path) or "file", "application/octet-stream")
    if isinstance(size, int) and size >= 0:
        response["X-File-Size"] = str(size)
    return response


async def archive_response(*, sandbox: Sandbox, actor: Actor, path: str) -> StreamingHttpResponse:
    """The directory as a .tar.gz, made by the guest's tar while it is sent. NotFound if there is none."""
    real = await _reply(await guest_call(sandbox=sandbox, method="realPath", params={"path": path}, actor=actor))
    where, what = (dirname(real), basename(real) or ".") if isinstance(real, str) else ("/", ".")
    spawned = await _reply(
        await guest_call(
            sandbox=sandbox,
            method="spawn",
            params={
                "command": "tar",
                "args": ["--create", "--gzip", "--ignore-failed-read", "--directory", where or "/", "--", what],
                "stdin": "null",
                "stdout": "piped",
                "stderr": "null",
            },
            actor=actor,
        )
    )
    pid = spawned["pid"]
    output = await guest_call(sandbox=sandbox, method="process.stdout", params={"pid": pid}, actor=actor)
    await _reply(output)

    async def end() -> None:
        # A download that was given up leaves tar blocked on its pipe.
        kill = await guest_call(
            sandbox=sandbox, method="processKill", params={"pid": pid, "signal": "SIGKILL"}, actor=actor
        )
        async with kill:
            await kill.reply()

    return download(_output([output], end), f"{what if what != '.' else 'root'}.tar.gz", "application/gzip")


async def _reply(call: GuestCall) -> Any:
    try:
        return await call.reply()
    except GuestInvalid as error:
        raise Invalid("the path is not one") from error
    except GuestFailed as error:
        kind = {"ENOENT": NotFound, "EISDIR": Invalid, "ENOTDIR": NotFound}.get(str(error.error.get("code")), Conflict)
        raise kind(str(error.error.get("message", "the guest refused"))[:500]) from error


async def _output(calls: list[GuestCall], end: Any = None) -> AsyncIterator[bytes]:
    (call,) = calls
    complete = False
    try:
        async with call:
            while data := await call.read():
                yield data
        complete = True
    finally:
        if end is not None and not complete:
            with contextlib.suppress(GuestFailed, DomainError):
                await end()


def download(chunks: AsyncIterator[bytes], name: str, kind: str) -> StreamingHttpResponse:
    """Bytes as a file of that name, which no browser shows."""
    response = StreamingHttpResponse(chunks, content_type=kind)
    name = "".join(c if c.isprintable() and c not in '/\\"' else "_" for c in name)[:200]
    response["Content-Disposition"] = content_disposition_header(as_attachment=True, filename=name) or "attachment"
    response["X-Content-Type-Options"] = "nosniff"
    response["Content-Security-Policy"] = "sandbox; default-src 'none'"
    response["Cache-Control"] = "no-store"
    return response
