"""Secrets: names and hosts are shown, values go one way."""

from __future__ import annotations

import sys
from typing import Any

import click

from ..client import Client, sandbox_path, signed_in
from ..errors import Failure
from ..output import ago, json_option, json_print, table_print

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
    cells = [(row["id"], row["name"], " ".join(row["hosts"]), row["version"], ago(row["created_at"])) for row in rows]
    table_print(cells, ("ID", "NAME", "HOSTS", "VERSION", "AGE"))


@secrets.command("create")
@click.argument("name")
@click.option("--host", "hosts", multiple=True, required=True, help="Where it may be sent; repeatable.")
@sandbox_option
@json_option
@signed_in
async def create_secret(client: Client, name: str, hosts: tuple[str, ...], sandbox: str | None, as_json: bool) -> None:
    """Make one. Its value is read from standard input, or asked for."""
    body: dict[str, Any] = {"name": name, "value": _value(), "hosts": list(hosts)}
    path = "/api/v1/secrets" if sandbox is None else sandbox_path((await client.sandbox(sandbox))["id"], "secrets")
    made = await client.call("POST", path, body)
    if as_json:
        json_print(made)
    else:
        click.echo(made["id"])


@secrets.command("rotate")
@click.argument("secret_id")
@signed_in
async def rotate_secret(client: Client, secret_id: str) -> None:
    """Give one another value, which holds at once. The value is read from standard input, or asked for."""
    made = await client.call("POST", f"/api/v1/secrets/{secret_id}/rotate", {"value": _value()})
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
