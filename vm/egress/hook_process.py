"""`python -m vm.egress.hook_process FD CALL SECONDS`: one hook, asked over that descriptor; `- CALL` only loads it.

What the administrator wrote runs here and not in an interceptor, which holds values of secrets: it may hang, crash or
grow, and this process ends for it.
"""

from __future__ import annotations

import importlib
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from vm.egress.hooks import (
    MAX_CALL,
    Refused,
    Request,
    Response,
    request_from_json,
    request_to_json,
    response_from_json,
    response_to_json,
)
from vm.host.confine import undumpable
from vm.node.wire import read_record_of, record

_MEMORY = 2**30  # bytes of addresses
_REASON = 200  # characters


def _loaded(call: str) -> Callable[..., Any]:
    module, _, name = call.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    if not callable(found):
        raise TypeError(f"{call} cannot be called")
    return found  # type: ignore[no-any-return]


def _answered(hook: Callable[..., Any], asked: dict[str, Any]) -> bytes:
    """The record to say; whatever goes wrong is said too, since this process serves others as well."""
    try:
        said = record(_called(hook, asked))
        return said if len(said) <= MAX_CALL else record({"failed": "it returned too much"})
    except Refused as refused:
        return record({"refused": str(refused)[:_REASON]})
    except Exception as error:
        # Its message may quote what passes
        return record({"failed": f"{type(error).__name__}{_place(error)}"})


def _called(hook: Callable[..., Any], asked: dict[str, Any]) -> dict[str, Any]:
    request = request_from_json(asked["request"])
    response = response_from_json(asked["response"]) if asked["response"] is not None else None
    given = hook(request) if response is None else hook(request, response)
    if given is None:
        return {"same": True}
    if response is None and isinstance(given, Request):
        return {"request": request_to_json(given)}
    if response is not None and isinstance(given, Response):
        return {"response": response_to_json(given)}
    return {"failed": f"it returned {type(given).__name__}"}


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f" in {trace.tb_frame.f_code.co_filename.rpartition('/')[2]}, line {trace.tb_lineno}"


def main(descriptor: str, call: str, seconds: str) -> None:
    """Answer until the interceptor is gone. A call that takes longer than `seconds` ends the process."""
    undumpable()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with socket.socket(fileno=int(descriptor)) as sock, sock.makefile("rb") as stream:
        signal.alarm(int(seconds))
        try:
            hook = _loaded(call)
        except Exception as error:
            sock.sendall(record({"unloaded": type(error).__name__}))
            return
        signal.alarm(0)
        sock.sendall(record({"loaded": True}))
        while (asked := read_record_of(stream)) is not None:
            signal.alarm(int(seconds))
            sock.sendall(_answered(hook, asked))
            signal.alarm(0)


if __name__ == "__main__":
    if sys.argv[1] == "-":
        _loaded(sys.argv[2])
    else:
        main(*sys.argv[1:4])
