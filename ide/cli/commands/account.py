"""Signing in and out."""

from __future__ import annotations

import asyncio
import socket
import sys
import webbrowser

import click

from .. import login
from ..client import Client, signed_in
from ..errors import Failure, NotSignedIn, Refused
from ..login import Login
from ..output import json_option, json_print, pairs_print


@click.command("login")
@click.argument("url", required=False)
@click.option("--with-token", is_flag=True, help="Read a token from standard input instead of asking in a browser.")
@click.option("--no-browser", is_flag=True, help="Print the address and open nothing.")
def login_command(url: str | None, with_token: bool, no_browser: bool) -> None:
    """Sign in to the server at URL: you confirm a code in a browser, on this machine or any other."""
    origin = (url or login.url_default()).rstrip("/")
    if not origin:
        raise click.UsageError("name the server: atoll login https://atoll.example.org")
    if "://" not in origin:
        origin = f"https://{origin}"
    if with_token:
        asyncio.run(_token_check(Login(origin, sys.stdin.readline().strip())))
    else:
        asyncio.run(_device_login(origin, browser=not no_browser))


async def _token_check(at: Login) -> None:
    if not at.token:
        raise NotSignedIn("standard input has no token")
    async with Client(at) as client:
        me = await client.call("GET", "/api/v1/me")
    login.write(at)
    _welcome(at, me["organization"]["slug"])


async def _device_login(origin: str, *, browser: bool) -> None:
    async with Client(Login(origin, "")) as client:
        begun = await client.call("POST", "/api/v1/device/login", {"client_name": socket.gethostname()})
        click.echo(f"Open {begun['url']} and confirm this code: {click.style(begun['user_code'], bold=True)}", err=True)
        click.echo(f"(or {begun['url_with_code']})", err=True)
        if browser:
            # A browser in the terminal would hide the code
            await asyncio.to_thread(_browse, begun["url_with_code"])
        while True:
            await asyncio.sleep(begun["interval"])
            answer = await client.call("POST", "/api/v1/device/token", {"secret": begun["secret"]})
            if answer["state"] == "granted":
                break
            if answer["state"] == "denied":
                raise Refused("the sign-in was denied on the page")
            if answer["state"] == "expired":
                raise Failure("nobody confirmed the code in time: run atoll login again")
    at = Login(origin, answer["token"], answer["organization"])
    login.write(at)
    _welcome(at, at.organization)


def _browse(address: str) -> None:
    try:
        controller = webbrowser.get()
    except webbrowser.Error:
        return
    if not isinstance(controller, webbrowser.GenericBrowser) or isinstance(controller, webbrowser.BackgroundBrowser):
        controller.open(address)


def _welcome(at: Login, organization: str) -> None:
    click.echo(f"Signed in to {at.url}, organization {organization}. The token is in {login.path()}.", err=True)


@click.command()
def logout() -> None:
    """Forget the token. It stays valid until it is revoked on the tokens page, or expires."""
    forgotten = login.forget()
    click.echo(f"Signed out of {forgotten.url}." if forgotten else "Nobody was signed in.", err=True)


@click.command()
@json_option
@signed_in
async def whoami(client: Client, as_json: bool) -> None:
    """Who is signed in, where, and with which role."""
    me = await client.call("GET", "/api/v1/me")
    if as_json:
        json_print(me)
        return
    pairs_print(
        {
            "Server": client.login.url,
            "Person": me["user"]["email"] if me["user"] else "an organization's token",
            "Organization": me["organization"]["slug"],
            "Role": me["role"],
            "Sandboxes": f"{me['quota']['used']} of {me['quota']['concurrent']}",
        }
    )
