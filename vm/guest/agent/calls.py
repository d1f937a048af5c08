"""One stream is one call: reads its request, finds the method, checks its parameters, answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from vm.guest.agent.errors import InvalidParams, Refusal, from_os_error
from vm.guest.agent.link import Stream, StreamGone
from vm.guest.agent.params import Declaration, checked

MAX_REQUEST = 1_048_576
MAX_REPLY = 16_777_216

Handler = Callable[..., Coroutine[Any, Any, Any]]


class Call:
    """One call under way: its stream, and the session it belongs to."""

    def __init__(self, stream: Stream, session: str | None) -> None:
        self.stream = stream
        self.session = session
        self.replied = False

    async def reply(self, value: object = None) -> None:
        """Answer with a value before the handler is done; output may follow."""
        self.replied = True
        await self.record({"ok": value})

    async def record(self, value: object) -> None:
        """Send one record. Refusal if it is too long."""
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogateescape")
        if len(text) > MAX_REPLY:
            raise Refusal("RangeError", f"The result has {len(text)} bytes, more than {MAX_REPLY}", "EMSGSIZE")
        await self.stream.write(len(text).to_bytes(4, "big") + text)


@dataclass(frozen=True, slots=True)
class Method:
    """A method's parameters and what carries it out: `handler(call, **params)`, whose result is the reply."""

    declaration: Declaration
    handler: Handler


class Methods:
    """The methods of an agent by name; `serve` answers one call."""

    def __init__(self) -> None:
        self._methods: dict[str, Method] = {}
        self._held: asyncio.Future[None] | None = None

    def add(self, name: str, handler: Handler, /, **declaration: str | Declaration) -> None:
        """Declare a method."""
        self._methods[name] = Method(declaration, handler)

    def names(self) -> list[str]:
        """All method names."""
        return sorted(self._methods)

    async def serve(self, stream: Stream) -> None:
        """Answer the call on this stream. Never raises but StreamGone and cancellation."""
        request = await _request(stream)
        if request is None:
            stream.reset("bad request")
            return
        call = Call(stream, request["session"])
        answer = await self._answer(call, request["method"], request["params"])
        if answer is not None:
            if call.replied:
                # Too late for an error object: an output without END is how the host learns of it
                stream.reset(json.dumps(answer)[:1000])
                return
            await call.record(answer)
        stream.end()

    def hold(self, until: asyncio.Future[None]) -> None:
        """Begin no further call before that is done."""
        self._held = until

    async def _answer(self, call: Call, name: str, params: dict[str, Any]) -> dict[str, Any] | None:
        method = self._methods.get(name)
        if method is None:
            return {"unknown": True}
        try:
            if self._held is not None:
                await asyncio.shield(self._held)
            value = await method.handler(call, **checked(params, method.declaration))
        except InvalidParams as invalid:
            return {"invalid": invalid.issues}
        except Refusal as refusal:
            return {"error": refusal.as_json()}
        except OSError as error:
            return {"error": from_os_error(error, name).as_json()}
        except (asyncio.CancelledError, StreamGone):
            raise
        except RecursionError:
            return {"error": Refusal("Error", "nested too deeply").as_json()}
        except MemoryError:
            return {"error": Refusal("Error", "the machine is out of memory", "ENOMEM").as_json()}
        except ValueError as error:
            # Python's own refusals: a path with a NUL, a time out of range
            return {"error": Refusal("TypeError", str(error), "EINVAL").as_json()}
        return None if call.replied else {"ok": value}


async def _request(stream: Stream) -> dict[str, Any] | None:
    head = await stream.read_exactly(4)
    if head is None or (length := int.from_bytes(head, "big")) > MAX_REQUEST:
        return None
    text = await stream.read_exactly(length)
    if text is None:
        return None
    try:
        request = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(request, dict) or not isinstance(request.get("method"), str):
        return None
    params, session = request.get("params"), request.get("session")
    if not isinstance(params, dict | None) or not isinstance(session, str | None):
        return None
    return {"method": request["method"], "params": params or {}, "session": session}
