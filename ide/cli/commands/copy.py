"""Copying files in every direction."""

from __future__ import annotations

import contextlib
import glob
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import click

from .. import copying
from ..client import Client, signed_in
from ..copying import Place, place_of
from ..errors import NotFound
from ..output import plain
from ..rpc import Guest, connected

type GuestOf = Callable[[Place, str], Awaitable[Guest]]


@click.command("cp")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.argument("target")
@signed_in
async def copy(client: Client, sources: tuple[str, ...], target: str) -> None:
    """Copy files and directories: SANDBOX:PATH is in a sandbox, other paths are here.

    Patterns such as '*.log' are matched where the file is. A target that ends in / is a directory, and made if it is
    not there. Modes, times and symbolic links are kept. A path in a sandbox is relative to its home directory.
    """
    async with contextlib.AsyncExitStack() as stack:
        guests: dict[str, Guest] = {}

        async def guest_of(place: Place, end: str) -> Guest:
            key = f"{end} {place.sandbox}"
            if key not in guests:
                row = await client.sandbox(place.sandbox)
                guests[key] = await stack.enter_async_context(connected(client, row["id"]))
            return guests[key]

        found: list[Place] = []
        for source in map(place_of, sources):
            if source.sandbox:
                paths = await copying.matching(await guest_of(source, "from"), source.path)
            else:
                paths = _matching_here(source.path)
            found += [Place(source.sandbox, path) for path in paths]
        goal = place_of(target)
        status = 0
        for source in found:
            status |= await _one(source, goal, guest_of, several=len(found) > 1)
    sys.exit(status)


async def _one(source: Place, goal: Place, guest_of: GuestOf, *, several: bool) -> int:
    name = copying.name_of(source.path) if source.sandbox else _name_here(source.path)
    if goal.sandbox:
        target = await guest_of(goal, "to")
        folder, wanted = await copying.target_in(target, goal.path, several=several, name=name)
        if source.sandbox:
            await copying.across(await guest_of(source, "from"), source.path, target, folder, wanted)
        else:
            await copying.upload(target, Path(source.path), folder, wanted)
        return 0
    local, wanted = copying.target_here(goal.path, several=several, name=name)
    if not source.sandbox:
        raise click.UsageError("neither is in a sandbox: write SANDBOX:PATH")
    left = await copying.download(await guest_of(source, "from"), source.path, local, wanted)
    for sentence in left:
        click.echo(f"atoll: {plain(sentence)}", err=True)
    return 1 if left else 0


def _name_here(path: str) -> str:
    # Without following a link, which has a name of its own
    return Path(os.path.abspath(path)).name


def _matching_here(path: str) -> list[str]:
    if os.path.lexists(path):
        return [path]
    # A shell has done this already, unless the pattern was quoted
    paths = sorted(glob.glob(path))
    if not paths:
        raise NotFound(f"there is no {path} here")
    return paths
