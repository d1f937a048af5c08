"""Volumes and their snapshots."""

from __future__ import annotations

from typing import Any

import click

from ..client import Client, sandbox_path, signed_in
from ..output import ago, json_option, json_print, table_print

type Row = dict[str, Any]


async def _all(client: Client, path: str, **query: str) -> list[Row]:
    """Every page of a list."""
    rows: list[Row] = []
    following = ""
    while True:
        page = await client.call("GET", path, limit=100, **query, **({"cursor": following} if following else {}))
        rows += page["items"]
        following = page["next"] or ""
        if not following:
            return rows


def _listed(rows: list[Row], as_json: bool) -> None:
    if as_json:
        json_print(rows)
        return
    cells = [
        (
            row["id"],
            row["slug"],
            row["state"],
            size(row["capacity"]),
            size(row["allocated"]),
            "yes" if row["bootable"] else "",
            (row["base"] or row["source"] or {}).get("slug", ""),
            ago(row["created_at"]),
        )
        for row in rows
    ]
    table_print(cells, ("ID", "NAME", "STATE", "SIZE", "ON DISK", "BOOTS", "OF", "AGE"))


def size(count: int) -> str:
    """Bytes for people, in powers of 1000 as capacities are given."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _told(row: Row, as_json: bool) -> None:
    if as_json:
        json_print(row)
    else:
        click.echo(row["id"])


def _commands(group: click.Group, path: str) -> None:
    """What volumes and snapshots have in common."""

    @group.command("list")
    @click.option("--search", default="", help="A part of the name.")
    @json_option
    @signed_in
    async def list_command(client: Client, search: str, as_json: bool) -> None:
        """The organization's, newest first."""
        _listed(await _all(client, path, search=search), as_json)

    @group.command("delete")
    @click.argument("name")
    @signed_in
    async def delete(client: Client, name: str) -> None:
        """Take one out of use; by its id it can be restored for a day."""
        row = await client.call("GET", f"{path}/{name}")
        await client.call("DELETE", f"{path}/{row['id']}")
        click.echo(row["id"])

    @group.command("restore")
    @click.argument("deleted_id")
    @json_option
    @signed_in
    async def restore(client: Client, deleted_id: str, as_json: bool) -> None:
        """Bring a deleted one back."""
        _told(await client.call("POST", f"{path}/{deleted_id}/restore"), as_json)


@click.group("volumes")
def volumes() -> None:
    """Disks that outlive sandboxes."""


@click.group("snapshots")
def snapshots() -> None:
    """What volumes held at one moment."""


_commands(volumes, "/api/v1/volumes")
_commands(snapshots, "/api/v1/snapshots")


@volumes.command("create")
@click.argument("name")
@click.argument("capacity", metavar="SIZE")
@click.option("--from", "source", default="", help="A snapshot, or builtin:debian-13. Default: empty.")
@json_option
@signed_in
async def create(client: Client, name: str, capacity: str, source: str, as_json: bool) -> None:
    """Make one of SIZE, such as 10GB."""
    body = {"slug": name, "capacity": capacity, "source": source}
    _told(await client.call("POST", "/api/v1/volumes", body), as_json)


@volumes.command("grow")
@click.argument("name")
@click.argument("capacity", metavar="SIZE")
@json_option
@signed_in
async def grow(client: Client, name: str, capacity: str, as_json: bool) -> None:
    """Make one larger, also while it is in use."""
    _told(await client.call("PATCH", f"/api/v1/volumes/{name}", {"capacity": capacity}), as_json)


@volumes.command("snapshot")
@click.argument("name")
@click.argument("snapshot")
@json_option
@signed_in
async def snapshot_command(client: Client, name: str, snapshot: str, as_json: bool) -> None:
    """Keep what a volume holds now, as a snapshot of that name."""
    _told(await client.call("POST", f"/api/v1/volumes/{name}/snapshot", {"slug": snapshot}), as_json)


@snapshots.command("take")
@click.argument("sandbox")
@click.argument("name")
@click.option("--memory", is_flag=True, help="With its memory: who boots from it goes on from that moment.")
@json_option
@signed_in
async def take(client: Client, sandbox: str, name: str, memory: bool, as_json: bool) -> None:
    """Keep what a sandbox's disk holds now, as a snapshot of that NAME."""
    row = await client.sandbox(sandbox)
    _told(await client.call("POST", sandbox_path(row["id"], "snapshot"), {"slug": name, "memory": memory}), as_json)


@volumes.command("attach")
@click.argument("sandbox")
@click.argument("volume")
@click.argument("path")
@click.option("--read-only", is_flag=True, help="Its last snapshot, which any number may have.")
@signed_in
async def attach(client: Client, sandbox: str, volume: str, path: str, read_only: bool) -> None:
    """Mount a volume in a running sandbox, at PATH."""
    row = await client.sandbox(sandbox)
    body = {"volume": volume, "path": path, "read_only": read_only}
    await client.call("POST", sandbox_path(row["id"], "volumes"), body)


@volumes.command("detach")
@click.argument("sandbox")
@click.argument("volume")
@signed_in
async def detach(client: Client, sandbox: str, volume: str) -> None:
    """Take a volume out of a running sandbox."""
    row = await client.sandbox(sandbox)
    await client.call("DELETE", sandbox_path(row["id"], "volumes", volume))
