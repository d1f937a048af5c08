"""What a sandbox listens on, and what of it is visited from outside."""

from __future__ import annotations

import os
from typing import Any

import click

from ..client import Client, sandbox_path, signed_in
from ..output import ago, json_option, json_print, table_print

PASSWORD = "ATOLL_PORT_PASSWORD"  # noqa: S105


@click.group("ports")
def ports() -> None:
    """What a sandbox listens on, and who may visit it."""


@ports.command("list")
@click.argument("sandbox")
@json_option
@signed_in
async def list_ports(client: Client, sandbox: str, as_json: bool) -> None:
    """Ports that programs listen on, and those that are exposed."""
    row = await client.sandbox(sandbox)
    listening = await client.call("GET", sandbox_path(row["id"], "ports"))
    exposed = await client.call("GET", sandbox_path(row["id"], "exposures"))
    if as_json:
        json_print({"listening": listening, "exposed": exposed})
        return
    programs = {one["port"]: one["command"] for one in listening}
    rows: list[tuple[object, ...]] = [
        (one["port"] or "", programs.get(one["port"], ""), one["url"] or one["kind"], one["access"], one["id"])
        for one in exposed
    ]
    shown = {one["port"] for one in exposed}
    rows += [(port, command, "", "", "") for port, command in programs.items() if port not in shown]
    table_print(rows, ("PORT", "PROGRAM", "ADDRESS", "FOR", "EXPOSURE"))


@ports.command("expose")
@click.argument("sandbox")
@click.argument("port", type=click.IntRange(1, 65535))
@click.option(
    "--access",
    type=click.Choice(["organization", "link", "password", "public"]),
    default="organization",
    show_default=True,
    help=f"Who gets in. The password is taken from {PASSWORD}, or asked for.",
)
@click.option("--hours", type=click.IntRange(1, 744), default=24, show_default=True, help="How long a link is good.")
@json_option
@signed_in
async def expose(client: Client, sandbox: str, port: int, access: str, hours: int, as_json: bool) -> None:
    """Expose PORT and print its address, which ends with the sandbox."""
    row = await client.sandbox(sandbox)
    body: dict[str, Any] = {"port": port, "access": access, "hours": hours}
    if access == "password":
        body["password"] = os.environ.get(PASSWORD) or click.prompt("Password", hide_input=True, err=True)
    made = await client.call("POST", sandbox_path(row["id"], "exposures"), body)
    if as_json:
        json_print(made)
        return
    click.echo(made["link"] or made["exposure"]["url"])
    if made["exposure"]["expires_at"]:
        click.echo(f"ends {ago(made['exposure']['expires_at'])}", err=True)


@ports.command("close")
@click.argument("sandbox")
@click.argument("exposure")
@signed_in
async def close(client: Client, sandbox: str, exposure: str) -> None:
    """Let nobody in any more by that exposure."""
    row = await client.sandbox(sandbox)
    await client.call("DELETE", sandbox_path(row["id"], "exposures", exposure))
