"""Secrets: names and hosts are shown, values go one way."""

from __future__ import annotations

import sys
from typing import Any

import click

from ..client import Client, sandbox_path, signed_in
from ..errors import Failure
from ..output import ago, json_option, json_print, table_print
from ..values import Pair

host_option = click.option("--host", "hosts", multiple=True, help="Where it may be sent; repeatable.")
place_option = click.option(
    "--place",
    "places",
    multiple=True,
    type=click.Choice(("path", "query", "body")),
    help="Put it into this part of requests, too, and not into header values only; repeatable.",
)
sandbox_option = click.option("--sandbox", help="Of this sandbox alone. Default: of the organization.")


@click.group("secrets")
def secrets() -> None:
    """Values that a sandbox's requests carry to some hosts, and that it never sees."""


@secrets.command("list")
@sandbox_option
@json_option
@signed_in
async def list_secrets(client: Client, sandbox: str | None, as_json: bool) -> None:
    """Names and hosts; with --sandbox those that it has, the organization's among them."""
    path = "/api/v1/secrets" if sandbox is None else sandbox_path((await client.sandbox(sandbox))["id"], "secrets")
    rows = await client.call("GET", path)
    if as_json:
        json_print(rows)
        return
    cells = [
        (
            row["id"],
            row["name"],
            " ".join(row["hosts"]),
            " ".join(["header", *row["places"]]),
            row["sandbox"] or " ".join(f"{name}={value}" for name, value in row["labels"].items()) or "all",
            row["version"],
            ago(row["created_at"]),
        )
        for row in rows
    ]
    table_print(cells, ("ID", "NAME", "HOSTS", "PLACES", "FOR", "VERSION", "AGE"))


@secrets.command("create")
@click.argument("name")
@host_option
@place_option
@sandbox_option
@click.option("--label", "labels", type=Pair(), multiple=True, help="Only for sandboxes with this label; repeatable.")
@json_option
@signed_in
async def create_secret(
    client: Client,
    name: str,
    hosts: tuple[str, ...],
    places: tuple[str, ...],
    sandbox: str | None,
    labels: tuple[tuple[str, str], ...],
    as_json: bool,
) -> None:
    """Make one. Its value is read from standard input, or asked for."""
    if not hosts:
        raise click.UsageError("where may it be sent? Say so with --host, once for each host")
    if sandbox is not None and labels:
        raise click.UsageError(
            "--label is for the organization's secrets: one with --sandbox is for that sandbox alone"
        )
    path = "/api/v1/secrets" if sandbox is None else sandbox_path((await client.sandbox(sandbox))["id"], "secrets")
    body: dict[str, Any] = {"name": name, "value": _value(), "hosts": list(hosts), "places": list(places)}
    if labels:
        body["labels"] = dict(labels)
    made = await client.call("POST", path, body)
    if as_json:
        json_print(made)
    else:
        click.echo(made["id"])


@secrets.command("rotate")
@click.argument("secret_id")
@host_option
@place_option
@signed_in
async def rotate_secret(client: Client, secret_id: str, hosts: tuple[str, ...], places: tuple[str, ...]) -> None:
    """Give one another value, which holds at once. The value is read from standard input, or asked for.

    Its hosts and places stay as they are, unless others are given.
    """
    body: dict[str, Any] = {"value": _value()}
    if hosts:
        body["hosts"] = list(hosts)
    if places:
        body["places"] = list(places)
    made = await client.call("POST", f"/api/v1/secrets/{secret_id}/rotate", body)
    click.echo(made["version"])


@secrets.command("revoke")
@click.argument("secret_id")
@signed_in
async def revoke_secret(client: Client, secret_id: str) -> None:
    """End one, and the connections that use it."""
    await client.call("DELETE", f"/api/v1/secrets/{secret_id}")


def _value() -> str:
    """Never an argument: those are in the shell's history, and in the list of processes."""
    if sys.stdin.isatty():
        return str(click.prompt("Value", hide_input=True, err=True))
    value = sys.stdin.read().removesuffix("\n")
    if not value:
        raise Failure("standard input has no value")
    return value
