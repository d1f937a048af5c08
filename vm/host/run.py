"""Runs a program of the host to its end: the only place that does, so every call has a deadline and a clear error."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Done:
    """What a program printed before it ended with exit code 0."""

    stdout: str
    stderr: str


class CommandFailed(Exception):
    """A program ended with another exit code than 0, was not found, or took too long; the message is one line."""

    def __init__(self, argv: Sequence[str], why: str, code: int | None = None) -> None:
        super().__init__(f"{argv[0]}: {why}")
        self.argv = tuple(argv)
        self.why = why
        self.code = code


def run(
    argv: Sequence[str | Path], *, timeout: float = 60.0, cwd: Path | None = None, input_text: str | None = None
) -> Done:
    """Run to the end; blocks, so never call it on an event loop. `timeout` in seconds. Raises CommandFailed."""
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(  # noqa: TID251 - this is the place
            words,
            input=input_text if input_text is not None else "",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            cwd=cwd,
            check=False,
        )
    except FileNotFoundError as error:
        raise CommandFailed(words, f"not found ({error.filename})") from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(words, f"took longer than {timeout:g} s") from error
    if done.returncode != 0:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise CommandFailed(words, lines[-1].strip() if lines else f"exit code {done.returncode}", done.returncode)
    return Done(done.stdout, done.stderr)
