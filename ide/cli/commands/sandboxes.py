"""Sandboxes and workspaces: made, listed, and led through their life."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import click

from ..client import Client, sandbox_path, signed_in
from ..errors import Failure, Refused
from ..output import ago, json_option, json_print, pairs_print, plain, table_print
from ..values import Duration, Lifetime, Pair

type Row = dict[str, Any]

wait_option = click.option("--wait/--no-wait", default=True, show_default=True, help="Return once it has happened.")
SETTLE_SECONDS = 300
"""For which a command waits at most for a state."""


async def settled(client: Client, public_id: str, *wanted: str) -> Row:
    """The sandbox once it is in one of those states. Refused if it ends up in another one."""
    until = time.monotonic() + SETTLE_SECONDS
    passing = {"queued", "starting", "suspending", "resuming", "stopping"}
    while True:
        row: Row = await client.call("GET", sandbox_path(public_id))
        if row["state"] in wanted:
            return row
        if row["state"] not in passing:
            raise Refused(f"{public_id} is {row['state']}: {row['state_reason'] or row['note'] or 'nobody said why'}")
        if time.monotonic() > until:
            raise Failure(f"{public_id} is still {row['state']} after {SETTLE_SECONDS} s: atoll show {public_id}")
        await asyncio.sleep(0.25)


def _told(row: Row, as_json: bool) -> None:
    if as_json:
        json_print(row)
    else:
        click.echo(row["id"])


@click.command("create")
@click.option("--name", default="", help="What people call it.")
@click.option("--workspace", is_flag=True, help="Keep its disk when it stops, so that it can be started again.")
@click.option(
    "--memory", type=click.IntRange(min=1), default=1280, show_default=True, metavar="MIB", help="Its memory."
)
@click.option(
    "--timeout",
    type=Lifetime(),
    help="How long it lives: 90s, 30m, 2h, or unlimited where the organization allows it. Default: as that has it.",
)
@click.option("--label", "labels", type=Pair(), multiple=True, help="A label; repeatable.")
@click.option("-e", "--env", type=Pair(), multiple=True, help="A variable of every process in it; repeatable.")
@click.option("--allow-net", multiple=True, metavar="HOST", help="Reach only this host; repeatable. Default: all.")
@click.option("--no-net", is_flag=True, help="Reach no host at all.")
@click.option("--deny-net", multiple=True, metavar="HOST", help="Never reach this host; repeatable.")
@click.option("--volume", "volumes", multiple=True, metavar="VOLUME:PATH[:ro]", help="Mount a volume; repeatable.")
@click.option("--root", default="", metavar="VOLUME", help="Boot from this volume or snapshot instead of the image.")
@wait_option
@json_option
@signed_in
async def create(
    client: Client,
    name: str,
    workspace: bool,
    memory: int,
    timeout: int | str | None,
    labels: tuple[tuple[str, str], ...],
    env: tuple[tuple[str, str], ...],
    allow_net: tuple[str, ...],
    no_net: bool,
    deny_net: tuple[str, ...],
    volumes: tuple[str, ...],
    root: str,
    wait: bool,
    as_json: bool,
) -> None:
    """Make a sandbox, and print its id once it runs."""
    if no_net and allow_net:
        raise click.UsageError("--no-net and --allow-net contradict each other")
    body: Row = {
        "name": name,
        "kind": "workspace" if workspace else "sandbox",
        "memory_mb": memory,
        "labels": dict(labels),
        "env": dict(env),
        "lifetime_seconds": timeout,
        "allow_net": list(allow_net) if allow_net or no_net else None,
        "deny_net": list(deny_net),
        "volumes": [_mount(text) for text in volumes],
        "root": root,
    }
    made = await client.call("POST", "/api/v1/sandboxes", body)
    _told(await settled(client, made["id"], "running") if wait else made, as_json)


def _mount(text: str) -> Row:
    volume, _, path = text.partition(":")
    read_only = path.endswith(":ro")
    path = path.removesuffix(":ro")
    if not volume or not path.startswith("/"):
        raise click.UsageError(f"{text!r} is not VOLUME:/PATH or VOLUME:/PATH:ro")
    return {"volume": volume, "path": path, "read_only": read_only}


@click.command("list")
@click.option("-a", "--all", "everything", is_flag=True, help="Stopped ones as well.")
@click.option("-q", "--quiet", is_flag=True, help="Ids only.")
@json_option
@signed_in
async def list_command(client: Client, everything: bool, quiet: bool, as_json: bool) -> None:
    """The organization's sandboxes, newest first."""
    rows = await client.call("GET", "/api/v1/sandboxes", state="all" if everything else "active")
    if as_json:
        json_print(rows)
    elif quiet:
        for row in rows:
            click.echo(row["id"])
    else:
        cells = [
            (
                row["id"],
                row["name"],
                row["kind"],
                row["state"],
                f"{row['memory_mb']} MiB",
                ago(row["created_at"]),
                ago(row["stop_at"]) if row["state"] == "running" else "",
                row["state_reason"],
            )
            for row in rows
        ]
        table_print(cells, ("ID", "NAME", "KIND", "STATE", "MEMORY", "AGE", "ENDS", "NOTE"))


@click.command()
@click.argument("sandbox")
@json_option
@signed_in
async def show(client: Client, sandbox: str, as_json: bool) -> None:
    """All that is known of one sandbox."""
    row = await client.sandbox(sandbox)
    if as_json:
        json_print(row)
        return
    pairs_print(
        {
            "Id": row["id"],
            "Name": row["name"],
            "Kind": row["kind"],
            "State": row["state"],
            "Why": row["state_reason"],
            "Memory": f"{row['memory_mb']} MiB",
            "Processors": row["vcpus"],
            "Disk": f"{row['disk_gib']} GiB",
            "Labels": ", ".join(f"{name}={value}" for name, value in row["labels"].items()),
            "Made": f"{ago(row['created_at'])} ago by {row['creator']}",
            "Ends": ago(row["stop_at"]),
            "Started": row["origin"],
            "Note": row["note"],
            "Next step": f"atoll {row['next_step']} {row['id']}" if row["next_step"] else "",
        }
    )


@click.command()
@click.argument("sandboxes", nargs=-1, required=True, metavar="SANDBOX...")
@signed_in
async def kill(client: Client, sandboxes: tuple[str, ...]) -> None:
    """Stop sandboxes for good. The disk of a workspace is kept for a day: atoll restore."""
    for name in sandboxes:
        row = await client.sandbox(name)
        await client.call("DELETE", sandbox_path(row["id"]))
        click.echo(row["id"])


def _step(name: str, target: str, text: str) -> click.Command:
    """A command that asks for one step of a sandbox's life and waits for the state it leads to."""

    @click.command(name, help=text)
    @click.argument("sandbox")
    @wait_option
    @json_option
    @signed_in
    async def command(client: Client, sandbox: str, wait: bool, as_json: bool) -> None:
        row = await client.sandbox(sandbox)
        row = await client.call("POST", sandbox_path(row["id"], name))
        _told(await settled(client, row["id"], target) if wait else row, as_json)

    return command


suspend = _step("suspend", "suspended", "Save a sandbox with its memory and end its machine.")
resume = _step("resume", "running", "Have a suspended sandbox go on where it was.")
stop = _step("stop", "stopped", "End a sandbox's machine; a workspace keeps its disk.")
start = _step("start", "running", "Start a stopped workspace on its disk.")


@click.command()
@click.argument("sandbox_id")
@json_option
@signed_in
async def restore(client: Client, sandbox_id: str, as_json: bool) -> None:
    """Bring a deleted workspace back, by its id, within a day. It is stopped then: atoll start."""
    _told(await client.call("POST", sandbox_path(sandbox_id, "restore")), as_json)


@click.command()
@click.argument("sandbox")
@click.option("--name", default="", help="What the copy is called.")
@click.option("--timeout", type=Duration(), help="How long the copy lives, where not as long as its original.")
@wait_option
@json_option
@signed_in
async def fork(client: Client, sandbox: str, name: str, timeout: int | None, wait: bool, as_json: bool) -> None:
    """Copy a running sandbox with its memory; both go on. Prints the copy's id."""
    row = await client.sandbox(sandbox)
    made = await client.call("POST", sandbox_path(row["id"], "fork"), {"name": name, "lifetime_seconds": timeout})
    _told(await settled(client, made["id"], "running") if wait else made, as_json)


@click.command()
@click.argument("sandbox")
@click.argument("duration", type=Duration(), metavar="TIME")
@json_option
@signed_in
async def extend(client: Client, sandbox: str, duration: int, as_json: bool) -> None:
    """Have a sandbox live for TIME (90s, 30m, 2h) from now at least; prints when it ends."""
    row = await client.sandbox(sandbox)
    row = await client.call("POST", sandbox_path(row["id"], "extend"), {"seconds": duration})
    if as_json:
        json_print(row)
    else:
        click.echo(row["stop_at"])


@click.command()
@click.argument("sandbox")
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens, until it has ended.")
@json_option
@signed_in
async def logs(client: Client, sandbox: str, follow: bool, as_json: bool) -> None:
    """What happened to a sandbox, oldest first. With --follow --json one entry is one line."""
    row = await client.sandbox(sandbox)
    seen = 0
    while True:
        entries = await client.call("GET", sandbox_path(row["id"], "timeline"))
        fresh = [entry for entry in entries if entry["id"] > seen]
        seen = max([seen, *(entry["id"] for entry in fresh)])
        if as_json and not follow:
            json_print(fresh)
        else:
            for entry in fresh:
                _entry_print(entry, as_json)
        if not follow or (entries and entries[-1]["state"] in ("stopped", "deleted")):
            return
        await asyncio.sleep(1)


def _entry_print(entry: Row, as_json: bool) -> None:
    if as_json:
        json_print(entry, one_line=True)
    else:
        click.echo(f"{entry['at']}  {entry['state']:<10}  {plain(entry['text'])}")


COMMANDS: list[click.Command] = [
    create, list_command, show, kill, suspend, resume, stop, start, restore, fork, extend, logs,
]  # fmt: skip
