"""Why the command line does not work here."""

from __future__ import annotations

import asyncio
import shutil
import sys

import click

from .. import login
from ..client import Client
from ..errors import Failure


@click.command()
def doctor() -> None:
    """Check what is needed: a server that answers, a token that is good, OpenSSH. Status 1 where something is not."""
    sys.exit(asyncio.run(_check()))


async def _check() -> int:
    try:
        at = login.read()
    except Failure as failure:
        _say(False, "signed in", str(failure))
        return 1
    async with Client(at) as client:
        try:
            me = await client.call("GET", "/api/v1/me")
        except Failure as failure:
            _say(False, f"server {at.url}", str(failure))
            return 1
    _say(True, f"server {at.url}", "answers")
    may = "sandbox.create" in me["may"]
    _say(may, "token", f"{me['role']} of {me['organization']['slug']}" + ("" if may else ", which may only look"))
    path = shutil.which("ssh")
    _say(bool(path), "OpenSSH", path or "is not installed: atoll ssh and exec -t need it")
    return 0 if may and path else 1


def _say(good: bool, what: str, text: str) -> None:
    click.echo(f"{click.style('ok  ' if good else 'FAIL', fg='green' if good else 'red')}  {what}: {text}")
