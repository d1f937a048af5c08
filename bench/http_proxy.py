"""The reference for exposed ports: aiohttp as a reverse proxy over TLS, in a process of its own.

`python -m bench.http_proxy UPSTREAM-PORT CERTIFICATE KEY` prints the port that it listens on.
"""

from __future__ import annotations

import asyncio
import ssl
import sys

from aiohttp import ClientSession, TCPConnector, web


async def main(upstream: int, certificate: str, key: str) -> None:
    async with ClientSession(connector=TCPConnector(limit=0), auto_decompress=False) as session:

        async def relay(request: web.Request) -> web.StreamResponse:
            url = f"http://127.0.0.1:{upstream}{request.raw_path}"
            body = request.content if request.can_read_body else None
            async with session.request(request.method, url, headers=request.headers, data=body) as answer:
                response = web.StreamResponse(status=answer.status, headers=answer.headers)
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await response.write(piece)
                await response.write_eof()
                return response

        application = web.Application()
        application.router.add_route("*", "/{path:.*}", relay)
        runner = web.AppRunner(application)
        await runner.setup()
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate, key)
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3]))
