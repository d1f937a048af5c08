"""The program `atoll`."""

from __future__ import annotations

import sys

import click
from click.shell_completion import get_completion_class

from .commands import account, copy, doctor, execute, ports, sandboxes, secrets, volumes
from .errors import Failure


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def atoll() -> None:
    """Sandboxes of an Atoll server from the command line."""


@atoll.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion for a shell: eval "$(atoll completion bash)"."""
    found = get_completion_class(shell)
    if found is None:  # pragma: no cover
        raise Failure(f"there is no completion for {shell}")
    click.echo(found(atoll, {}, "atoll", "_ATOLL_COMPLETE").source())


for _command in (
    account.login_command,
    account.logout,
    account.whoami,
    *sandboxes.COMMANDS,
    *execute.COMMANDS,
    copy.copy,
    secrets.secrets,
    ports.ports,
    volumes.volumes,
    volumes.snapshots,
    doctor.doctor,
):
    atoll.add_command(_command)


def main() -> None:
    """Run it; a failure is one line, and its status says its kind (errors.py)."""
    try:
        atoll(prog_name="atoll")
    except Failure as failure:
        click.echo(f"atoll: {failure}", err=True)
        sys.exit(failure.status)


if __name__ == "__main__":
    main()
