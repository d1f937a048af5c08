"""REST calls of a signed-in person, and the same for who is not signed in yet."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, Concatenate, Self
from urllib.parse import quote

import aiohttp

from . import login
from .errors import Failure, NotFound, Unreachable, failure_of
from .login import Login

ANSWER_SECONDS = 60


class Client:
    """One server and its token, for the time of a command."""

    def __init__(self, at: Login) -> None:
        self.login = at
        headers = {"User-Agent": "atoll"}
        if at.token:
            headers["Authorization"] = f"Bearer {at.token}"
        if at.organization:
            headers["X-Deno-Org"] = at.organization
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=10)
        self.session = aiohttp.ClientSession(headers=headers, timeout=timeout, trust_env=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    async def call(self, method: str, path: str, body: Any = None, **query: str | int) -> Any:
        """The answer to one call, None for one without a body. Failure as errors.py has it."""
        sent = {} if body is None else {"json": body}
        try:
            async with self.session.request(
                method, self.login.url + path, params=query or None, allow_redirects=False, **sent
            ) as answer:
                if answer.status >= 300:
                    raise failure_of(answer.status, await _message(answer))
                if answer.status == 204:
                    return None
                return await answer.json()
        except (aiohttp.ClientConnectionError, TimeoutError) as error:
            raise Unreachable(f"{self.login.url} does not answer: {error or 'it took too long'}") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise Failure(f"{self.login.url} is no Atoll server: {error}") from error

    async def sandbox(self, name: str) -> dict[str, Any]:
        """The sandbox of that id, or the only one of that name. NotFound."""
        if name.startswith("sbx_"):
            found: dict[str, Any] = await self.call("GET", sandbox_path(name))
            return found
        rows = await self.call("GET", "/api/v1/sandboxes")
        named = [row for row in rows if row["name"] == name]
        # What has ended is meant only where nothing else has the name
        matching = [row for row in named if row["state"] != "stopped"] or named
        if not matching:
            raise NotFound(f"there is no sandbox {name!r}")
        if len(matching) > 1:
            raise Failure(f"{len(matching)} sandboxes are called {name!r}: name one by its id")
        return dict(matching[0])


def sandbox_path(public_id: str, *more: str) -> str:
    """The path of a sandbox in REST, or of something of it."""
    return "/".join(["/api/v1/sandboxes", quote(public_id, safe=""), *more])


def signed_in[**P](work: Callable[Concatenate[Client, P], Awaitable[None]]) -> Callable[P, None]:
    """A command that runs `work` with a client of whoever is signed in."""

    @wraps(work)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        async def run() -> None:
            async with Client(login.read()) as client:
                await work(client, *args, **kwargs)

        asyncio.run(run())

    return command


async def _message(answer: aiohttp.ClientResponse) -> str:
    try:
        return str((await answer.json())["message"])
    except (aiohttp.ClientError, ValueError, TypeError, KeyError):
        return f"the server answered {answer.status} {answer.reason}"
