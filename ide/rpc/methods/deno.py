"""Deno in the sandbox: programs and code are run, watched and waited for, and a REPL evaluates."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

from ide.rpc import envelope
from ide.rpc import params as check
from ide.rpc.connection import Connection, Method, Raw
from ide.rpc.envelope import InvalidParams
from ide.rpc.handshake import Dialect
from ide.rpc.methods import processes
from sandboxes import background
from sandboxes.errors import DomainError
from sandboxes.permissions import SYSTEM
from sandboxes.services import streams

EXTENSIONS = ("js", "cjs", "mjs", "ts", "cts", "mts", "jsx", "tsx")
LONGEST_ARGUMENT = 100_000
"""Bytes of code that fit into one argument of a program (Linux: MAX_ARG_STRLEN); longer code goes into a file."""
_OWN = (
    "entrypoint",
    "code",
    "extension",
    "scriptArgs",
    "args",
    "watch",
    "stdinStreamId",
    "control",
    "command",
    "stdin",
)
_RESTARTING = re.compile(rb"Restarting! File change detected|File change detected! Restarting")
_KEPT = 64
"""Bytes of output in which the beginning of that line may be, when its end comes with the next piece."""


async def spawn_deno(connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
    """Run a program, or code with its extension; with `watch` again whenever what it was made of changes."""
    flags, script = _strings(params, "args"), _strings(params, "scriptArgs")
    watch = params.get("watch")
    file: str | None = None
    if params.get("entrypoint") is not None:
        argv = ["run", "-A", *_watched(watch), *flags, check.string(params, "entrypoint"), *script]
    else:
        code, extension = check.string(params, "code"), params.get("extension") or "ts"
        if extension not in EXTENSIONS:
            raise InvalidParams.one("extension", " | ".join(EXTENSIONS))
        if len(code.encode()) <= LONGEST_ARGUMENT:
            # In the working directory, as far as imports are concerned
            argv = ["eval", f"--ext={extension}", *flags, "--", code, *script]
        else:
            file = await _written(connection, code, extension)
            argv = ["run", "-A", *flags, file, *script]
        watch = None
    sent = {**check.only(params, *_OWN), "command": "deno", "args": argv}
    watcher = uuid.uuid4().hex if watch else None
    seen = _restarts(connection, watcher) if watcher is not None and connection.dialect is Dialect.JS else None
    try:
        started = await processes.start(connection, params, sent, seen=seen)
    except BaseException:
        if file is not None:
            background.spawn(_remove(connection, file), name="remove code")
        raise
    if file is not None:
        background.spawn(_remove(connection, file, after=started["pid"]), name="remove code")
    return {**started, "watcherId": watcher}


def _strings(params: dict[str, Any], name: str) -> list[str]:
    value = params.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise InvalidParams.one(name, "array of strings")
    return value


def _watched(watch: object) -> list[str]:
    if watch is None or watch is False:
        return []
    if watch is True:
        return ["--watch"]
    if not isinstance(watch, list) or not all(isinstance(path, str) and path and "," not in path for path in watch):
        raise InvalidParams.one("watch", "boolean | array of paths without commas")
    return ["--watch=" + ",".join(watch)] if watch else ["--watch"]


async def _written(connection: Connection, code: str, extension: str) -> str:
    file = str(await connection.ask("makeTempFile", {"prefix": "deno-", "suffix": f".{extension}"}))
    async with connection.running, await connection.guest("writeFile", {"path": file}, more=True) as call:
        await call.write(code.encode())
        await call.end_input()
        await call.reply()
    return file


async def _remove(connection: Connection, file: str, after: int | None = None) -> None:
    """Remove what was written for a process once it has ended, whether or not its client is there still."""
    steps: list[tuple[str, dict[str, Any]]] = [("remove", {"path": file})]
    if after is not None:
        steps.insert(0, ("processWait", {"pid": after}))
    for method, params in steps:
        try:
            async with await streams.guest_call(
                sandbox=connection.sandbox, method=method, params=params, actor=SYSTEM
            ) as call:
                await call.reply()
        except (streams.GuestFailed, streams.GuestInvalid, DomainError):
            return  # the machine is gone, or its user was quicker


def _restarts(connection: Connection, watcher: str) -> processes.Seen:
    """Tells the client when Deno says that it starts the program anew: it says so in its error output only."""
    kept = b""

    async def seen(data: bytes) -> None:
        nonlocal kept
        text = kept + data
        found = list(_RESTARTING.finditer(text))
        for _ in found:
            await connection.send(envelope.watcher_restart(watcher))
        kept = text[max(found[-1].end() if found else 0, len(text) - _KEPT) :]

    return seen


async def deno_http_wait(connection: Connection, params: dict[str, Any]) -> Any:
    """True once an HTTP server of the process listens; false if it ends before."""
    async with await connection.guest("denoHttpWait", {"pid": check.integer(params, "pid")}) as call:
        return await call.reply()


async def spawn_deno_repl(connection: Connection, params: dict[str, Any]) -> dict[str, Any]:
    """Start a REPL, which keeps its state between evaluations."""
    script = _strings(params, "scriptArgs")
    argv = ["repl", "--json", "-A", *_strings(params, "args"), *(["--", *script] if script else [])]
    sent = {**check.only(params, *_OWN), "command": "deno", "args": argv, "control": True}
    return await processes.start(connection, params, sent)


async def deno_repl_eval(connection: Connection, params: dict[str, Any]) -> Raw:
    """The value of the last expression."""
    return await _evaluated(connection, check.integer(params, "pid"), check.string(params, "code"))


async def deno_repl_call(connection: Connection, params: dict[str, Any]) -> Raw:
    """What a function, by its name or written out, returns for these arguments."""
    arguments = params.get("args")
    if arguments is None:
        arguments = []
    if not isinstance(arguments, list):
        raise InvalidParams.one("args", "array")
    code = f"await ({check.string(params, 'fn')}\n)(...{json.dumps(arguments)})"
    return await _evaluated(connection, check.integer(params, "pid"), code)


async def _evaluated(connection: Connection, pid: int, code: str) -> Raw:
    # It may take any time: not one of those that are carried out at a time
    async with await connection.guest("denoReplEval", {"pid": pid, "code": code}) as call:
        text = await call.reply()
    try:
        # Python takes NaN for a number, and the client's parser would close the connection
        json.loads(text, parse_constant=_no_number)
    except (TypeError, ValueError, RecursionError):
        raise envelope.OperationFailed(
            {"constructorName": "Error", "message": "the REPL's answer is no JSON", "code": "EINVAL"}
        ) from None
    return Raw(text)


def _no_number(text: str) -> None:
    raise ValueError(text)


async def deno_repl_close(connection: Connection, params: dict[str, Any]) -> Any:
    """End the REPL."""
    return await connection.ask("denoReplClose", {"pid": check.integer(params, "pid")})


METHODS: dict[str, Method] = {
    "spawnDeno": spawn_deno,
    "denoHttpWait": deno_http_wait,
    "spawnDenoRepl": spawn_deno_repl,
    "denoReplEval": deno_repl_eval,
    "denoReplCall": deno_repl_call,
    "denoReplClose": deno_repl_close,
}
