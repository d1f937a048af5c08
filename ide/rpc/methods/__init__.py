"""The methods a client may call, by name; what is not here does not exist for it."""

from __future__ import annotations

from collections.abc import Mapping

from ide.rpc.connection import Method
from ide.rpc.methods import control, deno, editor, exposure, fetch, files, handles, plain, processes, saving

SDK: Mapping[str, Method] = {
    **plain.METHODS,
    **control.METHODS,
    **files.METHODS,
    **handles.METHODS,
    **processes.METHODS,
    **deno.METHODS,
    **fetch.METHODS,
    **exposure.METHODS,
}
"""What the official SDKs may call."""

BROWSER: Mapping[str, Method] = {**SDK, **editor.METHODS, **saving.METHODS}
"""What our own pages may call."""

UNNOTICED = frozenset({"watch", "usage", "process.list", "terminal.list", "readDir", "stat", "lstat", "realPath"})
"""What our own pages call by themselves: no sign that somebody uses the sandbox."""
