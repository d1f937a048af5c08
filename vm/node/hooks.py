"""Whether the hooks of an installation can be loaded by whom an interceptor runs as: what `doctor` says of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from vm.egress.hooks import parse_hooks
from vm.host.preflight import Finding, Level
from vm.host.run import CommandFailed, run
from vm.node.interceptors import CHECKOUT

_LOADING = 30.0


def hooks_checked(words: Sequence[str], place: Path | None, *, user: str, python: Path) -> list[Finding]:
    """A finding for each; blocks."""
    try:
        hooks = parse_hooks(words)
    except ValueError as error:
        return [
            Finding("hooks", Level.FAIL, f"ATOLL_EGRESS_HOOKS cannot be read: {error}", "docs/hooks.md has the form")
        ]
    return [_checked(hook.call, place, user, python) for hook in hooks]


def _checked(call: str, place: Path | None, user: str, python: Path) -> Finding:
    argv = (
        *(sys.executable, "-m", "vm.host.confine", user, "--"),
        *("env", f"PYTHONPATH={place or ''}", python, "-m", "vm.egress.hook_process", "-", call),
    )
    try:
        run(argv, timeout=_LOADING, cwd=CHECKOUT)
    except CommandFailed as failed:
        advice = f"the user {user} must be able to import it from ATOLL_EGRESS_HOOKS_PATH ({place or 'not set'})"
        return Finding("hook", Level.FAIL, f"{call} cannot be loaded, so its hosts are denied: {failed.why}", advice)
    return Finding("hook", Level.OK, f"{call} can be loaded")
