"""Runs the agent on the host, for tests: `python -m vm.guest.agent --fd N`. In a machine PID 1 calls `agent.serve`."""

from __future__ import annotations

import argparse
import os

from vm.guest.agent.agent import serve
from vm.guest.agent.settings import of_host


def main(argv: list[str] | None = None) -> None:
    """Serve one inherited socket as the current user, until it closes."""
    parser = argparse.ArgumentParser(prog="python -m vm.guest.agent")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--home", default=os.path.expanduser("~"))
    options = parser.parse_args(argv)
    serve(options.fd, of_host(options.home), reopen=False)


if __name__ == "__main__":
    main()
