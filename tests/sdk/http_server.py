"""A small HTTP server of the standard library alone, for running inside a sandbox: prints its port.

/ tells the request; /echo gives its body back as chunks as it comes; /events?x sends three, the next one once
/seen?x was asked for; /big?n that many bytes; /ws echoes WebSocket messages; /forever sends until nobody reads, and
notes in ./sent how much.
"""

import asyncio
import base64
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import AsyncIterator

BLOCK = bytes(range(256)) * 256
SEEN: dict[str, asyncio.Queue[None]] = defaultdict(asyncio.Queue)
"""What each visitor has seen of its events."""


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while await answer(reader, writer):
            pass
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    writer.close()


async def pieces(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    left = int(headers.get("content-length", 0))
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            yield await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    while left and (piece := await reader.read(min(left, 65536))):
        left -= len(piece)
        yield piece


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    line = await reader.readline()
    if not line:
        return False
    method, target, _ = line.decode().split()
    path, _, query = target.partition("?")
    headers: dict[str, str] = {}
    while (line := await reader.readline()) != b"\r\n":
        name, _, value = line.decode("latin-1").partition(":")
        name, before = name.lower(), headers.get(name.lower())
        headers[name] = value.strip() if before is None else f"{before}, {value.strip()}"

    def head(status: str, *more: str) -> None:
        writer.write("\r\n".join([f"HTTP/1.1 {status}", *more, "", ""]).encode())

    if path == "/echo":
        head("200 OK", "Transfer-Encoding: chunked")
        async for piece in pieces(reader, headers):
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
    elif path == "/events":
        head("200 OK", "Content-Type: text/event-stream")
        for number in range(3):
            writer.write(b"data: %d\n\n" % number)
            await writer.drain()
            await SEEN[query].get()
        return False
    elif path == "/seen":
        SEEN[query].put_nowait(None)
        head("204 No Content")
    elif path == "/big":
        size = int(query)
        head("200 OK", f"Content-Length: {size}")
        for at in range(0, size, len(BLOCK)):
            writer.write(BLOCK[: size - at])
            await writer.drain()
    elif path == "/short":
        head("200 OK", "Content-Length: 100000")
        writer.write(b"half")
        await writer.drain()
        writer.transport.abort()
        return False
    elif path == "/forever":
        head("200 OK")
        sent = 0
        try:
            while True:
                writer.write(BLOCK)
                await writer.drain()
                sent += len(BLOCK)
                with open("sent", "w") as file:
                    file.write(str(sent))
        finally:
            with open("over", "w") as file:
                file.write(str(sent))
    elif path == "/ws":
        key = headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode(), usedforsecurity=False).digest()).decode()
        head("101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accept}")
        while True:
            first, second = await reader.readexactly(2)
            size = second & 127
            if size > 125:
                size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8), "big")
            mask = await reader.readexactly(4)
            data = await reader.readexactly(size)
            data = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
            length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big")
            writer.write(bytes([first]) + length + data)
            await writer.drain()
            if first & 15 == 8:
                return False
    else:
        body = b"".join([piece async for piece in pieces(reader, headers)])
        told = json.dumps({"method": method, "target": target, "headers": headers, "size": len(body)}).encode()
        head("200 OK", f"Content-Length: {len(told)}", "Set-Cookie: a=1", "Set-Cookie: b=2")
        writer.write(b"" if method == "HEAD" else told)
    await writer.drain()
    return True


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
