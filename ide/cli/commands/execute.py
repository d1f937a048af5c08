"""Running commands in a sandbox, and logging in to it."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import sys
from typing import Any

import click

from .. import processes
from ..client import Client, signed_in
from ..errors import Failure
from ..output import json_option, json_print
from ..rpc import Guest, GuestError, connected
from ..values import Pair

NOT_FOUND, FAILED = 127, 125
"""What a shell says of a command that is not there, and docker of its own failures."""


@click.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("-t", "--tty", is_flag=True, help="On a terminal of its own, over SSH; for editors, shells and the like.")
@click.option("-n", "--no-stdin", is_flag=True, help="Do not read standard input: for loops that read it themselves.")
@click.option("-w", "--workdir", help="The directory it runs in.")
@click.option("-e", "--env", type=Pair(), multiple=True, help="A variable of its environment; repeatable.")
@click.argument("sandbox")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@signed_in
async def execute(
    client: Client,
    tty: bool,
    no_stdin: bool,
    workdir: str | None,
    env: tuple[tuple[str, str], ...],
    sandbox: str,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND in a sandbox, joined to this one's streams; ends with its exit status.

    Nothing is parsed by a shell: for pipes and variables of the sandbox run sh -c '...'.
    """
    if command[0] == "--":
        command = command[1:]
    if not command:
        raise click.UsageError("there is no command")
    if tty:
        row = await client.sandbox(sandbox)
        prefix = ["cd", workdir, "&&"] if workdir else []
        words = [*prefix, "exec", "env", *(f"{name}={value}" for name, value in env), *command]
        line = " ".join(word if word == "&&" else shlex.quote(word) for word in words)
        await _ssh(client, row["id"], ["-t"], [line])
        return
    try:
        row = await client.sandbox(sandbox)
        async with connected(client, row["id"]) as guest:
            status = await _joined(guest, command, workdir, dict(env), read=not no_stdin and not sys.stdin.isatty())
    except GuestError as error:
        click.echo(f"atoll: {error}", err=True)
        sys.exit(NOT_FOUND if error.code == "ENOENT" else FAILED)
    except BrokenPipeError:
        # As a command that writes to a pipe which nobody reads
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + signal.SIGPIPE)
    except asyncio.CancelledError:
        sys.exit(128 + signal.SIGINT)
    except Failure as failure:
        click.echo(f"atoll: {failure}", err=True)
        sys.exit(FAILED)
    if status.get("oom"):
        click.echo("atoll: the machine ran out of memory, and the command was ended for it", err=True)
    sys.exit(status["code"])


async def _joined(
    guest: Guest, command: tuple[str, ...], cwd: str | None, env: dict[str, str], *, read: bool
) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    started: asyncio.Future[int] = loop.create_future()
    passing: set[asyncio.Future[None]] = set()
    this = asyncio.current_task()

    async def pass_on(name: str) -> None:
        await processes.kill(guest, await started, name)

    def caught(name: str) -> None:
        if passing and this is not None:
            # Whoever asks twice does not want to wait for an answer
            this.cancel()
        passing.add(asyncio.ensure_future(pass_on(name)))

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in signals:
        loop.add_signal_handler(number, caught, number.name)
    try:
        return await processes.run(
            guest,
            *command,
            given=processes.descriptor_read(0) if read else None,
            out=processes.descriptor_sink(1),
            err=processes.descriptor_sink(2),
            cwd=cwd,
            env=env or None,
            started=started,
        )
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
        for task in passing:
            task.cancel()


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--print", "only_print", is_flag=True, help="Print where one logs in, and log in nowhere.")
@json_option
@click.argument("sandbox")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@signed_in
async def ssh(client: Client, only_print: bool, as_json: bool, sandbox: str, arguments: tuple[str, ...]) -> None:
    """Log in to a sandbox by OpenSSH's ssh. ARGUMENTS are its options, such as -L, and a command after --.

    The login is made for this: whoever has its user name can log in until the sandbox ends.
    """
    row = await client.sandbox(sandbox)
    if only_print or as_json:
        login = await _login(client, row["id"])
        if as_json:
            json_print(login)
        else:
            click.echo(shlex.join(["ssh", "-p", str(login["port"]), f"{login['username']}@{login['hostname']}"]))
        return
    # Options come before the host, a command after it
    at = arguments.index("--") if "--" in arguments else None
    options = list(arguments if at is None else arguments[:at])
    words = [] if at is None else list(arguments[at + 1 :])
    if at is None and options and not options[0].startswith("-"):
        options, words = [], options
    await _ssh(client, row["id"], options, words)


async def _login(client: Client, public_id: str) -> dict[str, Any]:
    return dict(await client.call("POST", f"/api/v3/sandbox/{public_id}/expose/ssh", {}))


async def _ssh(client: Client, public_id: str, options: list[str], command: list[str]) -> None:
    """Become OpenSSH's client."""
    program = shutil.which("ssh")
    if program is None:
        raise Failure("OpenSSH's ssh is not installed here")
    login = await _login(client, public_id)
    # A host's key is remembered when it is first met, as nobody could compare it with anything
    given = ["-p", str(login["port"]), "-o", "StrictHostKeyChecking=accept-new", "-o", "LogLevel=ERROR"]
    sys.stdout.flush()
    os.execv(program, ["ssh", *given, *options, f"{login['username']}@{login['hostname']}", *command])  # noqa: S606


COMMANDS: list[click.Command] = [execute, ssh]
