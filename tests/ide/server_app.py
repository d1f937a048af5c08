"""An ASGI application that shows what a server does with slow peers; a process: server_app.py daphne|ours PORT."""

from __future__ import annotations

import asyncio
import resource
import sys
from typing import Any


def rss_mib() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // 2**20


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    path = scope["path"]
    if scope["type"] == "http":
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        if path == "/memory":
            await send({"type": "http.response.body", "body": str(rss_mib()).encode()})
            return
        for _ in range(3200 if path == "/flood" else 1):
            await send({"type": "http.response.body", "body": bytes(65_536), "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    await receive()
    if path == "/refuse":
        await send(
            {
                "type": "websocket.http.response.start",
                "status": 404,
                "headers": [(b"content-type", b"application/json")],
            }
        )
        await send({"type": "websocket.http.response.body", "body": b'{"code":"NOT_FOUND","message":"none"}'})
        return
    await send({"type": "websocket.accept", "headers": [(b"x-trace", b"abc")]})
    if path == "/slow":
        await asyncio.sleep(30)
    elif path == "/flood":
        for _ in range(3200):
            await send({"type": "websocket.send", "bytes": bytes(65_536)})
    elif path == "/close":
        await send({"type": "websocket.close", "code": 1001, "reason": "time is up"})
    else:
        while (message := await receive())["type"] != "websocket.disconnect":
            if message.get("bytes") is not None:
                await send({"type": "websocket.send", "text": str(len(message["bytes"]))})
            else:
                await send({"type": "websocket.send", "text": message["text"]})


if __name__ == "__main__":
    from daphne.server import Server

    from ide.server import BoundedServer, serve

    serve(
        application,
        bind="127.0.0.1",
        port=int(sys.argv[2]),
        server=Server if sys.argv[1] == "daphne" else BoundedServer,
    )
