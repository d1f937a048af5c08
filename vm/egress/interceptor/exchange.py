"""What becomes of each request and its answer on one connection: checked, filled with values, looked through, noted."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from mitmproxy import http

from vm.api import Secret
from vm.egress.explain import answer_headers, explanation
from vm.egress.handover import HandOver
from vm.egress.hooks import MAX_BODY, Request
from vm.egress.interceptor import hooked, substitute
from vm.egress.interceptor.bodies import MAX_WHOLE, AnswerBody, PassedBody, RequestBody, whole
from vm.egress.interceptor.budget import Held
from vm.egress.interceptor.coding import Decoding, Undecodable
from vm.egress.interceptor.frames import BadFrame, Frames
from vm.egress.interceptor.hooks import Chain, HookDenied, Hooks
from vm.egress.interceptor.known import Machine
from vm.egress.interceptor.layers import UNREACHED, Refused, has_no_body
from vm.egress.interceptor.replace import NOTHING, Replacements
from vm.egress.interceptor.requests import Asked, is_plainly_framed, is_websocket, objection, shown_path
from vm.egress.interceptor.work import Pace
from vm.egress.journal import Kind, Passage, Verdict, stray_placeholder
from vm.egress.policy import Decision

_SMALL = 65_536  # bytes of an answer that is looked through as a whole, so that it keeps a length
_COLLECTED = 2**20  # of a request's body with values in it, for the same reason
_NONE = -1
_ALERTS = 100  # for one connection: a program that sends a foreign placeholder does so again and again
_OURS = "atoll"
_GRPC, _GRPC_IN_BASE64 = "application/grpc", "application/grpc-web-text"


@dataclass(slots=True, eq=False)
class _Exchange:
    """One request, from its head to the end of its answer."""

    method: str
    path: str
    began: float = field(default_factory=time.time)
    began_at: float = field(default_factory=time.monotonic)
    secrets: tuple[Secret, ...] = ()
    decision: Decision | None = None
    failed: bool = False
    sent: int = 0
    received: int = 0
    status: int = 0
    grpc: bool = False
    websocket: bool = False
    noted: bool = False
    hooks: Chain | None = None
    seen: Request | None = None  # as its hooks left it


class Exchanges:
    """Those of one connection. Its methods are mitmproxy's hooks; `tell` is told of requests and alerts."""

    def __init__(
        self, handed: HandOver, machine: Machine, hooks: Hooks, tell: Callable[[Passage], None], *, pace: Pace
    ) -> None:
        self._handed = handed
        self._machine = machine
        self._hooks = hooks
        self._tell = tell
        self._pace = pace
        self._alerted: set[str] = set()
        self._frames: dict[bool, Frames] = {}
        self.held = Held(machine.room)
        self.why = ""  # it was ended by us

    # -- requests

    def request_headers(self, flow: http.HTTPFlow) -> Awaitable[object] | None:
        """Decide about a request, and put values into its head."""
        handed, asked = self._handed, hooked.asked_of(flow.request)
        exchange = _Exchange(
            method=asked.method[:32].decode("latin-1"),
            path=shown_path(asked.target),
        )
        flow.metadata[_OURS] = exchange
        if flow.error is not None:
            return None  # mitmproxy refuses it by itself, and says so in `error`
        exchange.failed = handed.failed
        if not self._may_pass(flow, exchange, asked):
            return None
        exchange.hooks = self._hooks.of(handed.host, handed.port)
        if exchange.hooks is None:
            self._prepare(flow, exchange, asked)
            return None
        # A body that can be had as a whole is waited for, and hooks get it in `request`
        if hooked.is_short(flow.request) and self.held.take(exchange, hooked.length_of(flow.request)):
            return None
        return self._through_hooks(flow, exchange, exchange.hooks, None)

    def _may_pass(self, flow: http.HTTPFlow, exchange: _Exchange, asked: Asked) -> bool:
        handed = self._handed
        decision = handed.denied or objection(asked, host=handed.host, port=handed.port, sni=flow.client_conn.sni)
        decision = decision or self._machine.policy.judge(handed.host, handed.port, handed.address)
        exchange.decision = decision
        if not decision.allowed:
            self._deny(flow, exchange, decision)
        return decision.allowed

    def _prepare(self, flow: http.HTTPFlow, exchange: _Exchange, asked: Asked) -> None:
        handed = self._handed
        exchange.secrets = self._machine.bound(handed.host, handed.port)
        try:
            self._fill(flow, exchange, asked)
        except substitute.Unfit as error:
            self._deny(flow, exchange, Decision(False, "secrets", f"{handed.host}:{handed.port} is denied: {error}."))

    async def _through_hooks(
        self, flow: http.HTTPFlow, exchange: _Exchange, hooks: Chain, body: bytes | None
    ) -> bytes | None:
        """The body that goes on; what a hook made of a request is decided about as if the guest had sent it."""
        request = flow.request
        before = hooked.request_of(request, self._handed.host, self._handed.port, body)
        try:
            exchange.seen = after = await hooks.request(self._machine.hooking, before)
        except HookDenied as denied:
            self._deny(flow, exchange, self._by_hook(denied))
            return None
        hooked.change_request(request, after)
        asked = hooked.asked_of(request)
        exchange.method, exchange.path = after.method[:32], shown_path(asked.target)
        if self._may_pass(flow, exchange, asked):
            self._prepare(flow, exchange, asked)
        return after.body

    def _by_hook(self, denied: HookDenied) -> Decision:
        return Decision(False, "hook", f"{self._handed.host}:{self._handed.port} is denied: {denied}.")

    def _deny(self, flow: http.HTTPFlow, exchange: _Exchange, decision: Decision) -> None:
        exchange.decision = decision
        status, text = explanation(self._handed.host, self._handed.port, decision, failed=exchange.failed)
        if decision.rule == "host mismatch" and flow.request.is_http2:
            status = 421  # a client that may use one connection for several hosts then makes another
        fields = answer_headers(failed=exchange.failed)
        if flow.request.is_http2:
            del fields["Connection"]
        flow.response = http.Response.make(status, "" if flow.request.method == "HEAD" else text, fields)

    def _fill(self, flow: http.HTTPFlow, exchange: _Exchange, asked: Asked) -> None:
        request, secrets = flow.request, exchange.secrets
        self._look_for_strangers(substitute.placeholders(asked.fields, asked.target))
        headers = http.Headers(substitute.in_headers(asked.fields, secrets))
        request.headers = headers
        request.data.path = substitute.in_target(asked.target, secrets)
        if not self.held.take(
            exchange, len(request.data.path) + sum(len(name) + len(value) for name, value in headers.fields)
        ):
            raise substitute.Unfit("too much of this sandbox's requests is under way")
        content_type = headers.get("content-type", "")
        exchange.grpc = content_type.lower().startswith(_GRPC)
        exchange.websocket = is_websocket(asked)
        self._ask_for_what_can_be_read(headers, exchange, http2=asked.http2)
        filling = self._filling(content_type)
        found = self._found_in_body(flow, exchange)
        if exchange.grpc or not filling():
            request.stream = self._passed(exchange, PassedBody(headers.get("content-encoding", ""), found))
            return
        body = RequestBody(filling, found)
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) <= _COLLECTED and self.held.take(exchange, int(length)):
            return
        try:
            body.decoding = Decoding(headers.get("content-encoding", ""))
        except Undecodable as error:
            raise substitute.Unfit(f"the body cannot be looked through: {error}") from error
        for name in ("content-length", "content-encoding"):
            headers.pop(name, None)
        request.stream = self._passed(exchange, body)

    def _ask_for_what_can_be_read(self, headers: http.Headers, exchange: _Exchange, *, http2: bool) -> None:
        # An answer in parts could hold half of a value in each
        for name in ("range", "if-range"):
            headers.pop(name, None)
        headers["accept-encoding"] = "identity"
        if exchange.grpc or "grpc-accept-encoding" in headers:
            headers["grpc-accept-encoding"] = "identity"
        if not http2:
            headers.pop("te", None)  # mitmproxy cannot read trailers behind chunks
        if exchange.websocket:
            headers.pop("sec-websocket-extensions", None)

    def _filling(self, content_type: str) -> Callable[[], Replacements]:
        """What to replace in a body of that type by the secrets of the time: a stream may outlive a value."""
        known: tuple[Secret, ...] | None = None
        made = NOTHING

        def now() -> Replacements:
            nonlocal known, made
            if known is not self._machine.secrets:
                known = self._machine.secrets
                made = substitute.in_body(content_type, self._machine.bound(self._handed.host, self._handed.port))
            return made

        return now

    def _found_in_body(self, flow: http.HTTPFlow, exchange: _Exchange) -> Callable[[set[str]], None]:
        """What becomes of placeholders in a body. Refused where none of its values can stand there."""

        def look(found: set[str]) -> None:
            self._look_for_strangers(found)
            for secret in exchange.secrets if exchange.grpc else ():
                if "body" in secret.places and secret.placeholder in found:
                    said = f"{secret.name} cannot be put into a gRPC message, which counts its own bytes"
                    where = f"{self._handed.host}:{self._handed.port}"
                    self._deny(flow, exchange, Decision(False, "secrets", f"{where} is denied: {said}."))
                    exchange.status = 403
                    self._note(exchange)
                    raise Refused

        return look

    def _passed(
        self, exchange: _Exchange, body: RequestBody | PassedBody
    ) -> Callable[[bytes], Iterator[bytes] | bytes]:
        def stream(data: bytes) -> Iterator[bytes] | bytes:
            exchange.sent += len(data)
            return body.feed(data)

        return stream

    def request(self, flow: http.HTTPFlow) -> Awaitable[object] | None:
        """A request is here as a whole; its body was collected if values must go into it, or for hooks."""
        exchange: _Exchange = flow.metadata[_OURS]
        if exchange.decision is None or not exchange.decision.allowed:
            return None
        if flow.request.trailers is not None:
            self._look_for_strangers(substitute.placeholders(flow.request.trailers.fields, b""))
        if exchange.hooks is not None and exchange.seen is None:
            return self._collected(flow, exchange, exchange.hooks)
        return self._fill_body(flow, exchange) if flow.request.data.content else None

    async def _collected(self, flow: http.HTTPFlow, exchange: _Exchange, hooks: Chain) -> None:
        request = flow.request
        body = RequestBody(lambda: NOTHING, lambda found: None)
        try:
            body.decoding = Decoding(request.headers.get("content-encoding", ""))
            content = await self._whole(exchange, body, request.data.content or b"", MAX_BODY)
        except Undecodable as error:
            self._deny(flow, exchange, self._by_hook(HookDenied(f"no hook can read the body: {error}")))
            return
        request.headers.pop("content-encoding", None)
        changed = await self._through_hooks(flow, exchange, hooks, content)
        if exchange.decision is None or not exchange.decision.allowed:
            return
        request.data.content = changed or b""
        if changed or "content-length" in request.headers:
            request.headers["content-length"] = str(len(request.data.content))
        await self._fill_body(flow, exchange)

    async def _whole(
        self, exchange: _Exchange, body: RequestBody | AnswerBody, data: bytes, most: int = MAX_WHOLE
    ) -> bytes:
        return await whole(body, data, self._pace, lambda count: self.held.take(exchange, count), most)

    async def _fill_body(self, flow: http.HTTPFlow, exchange: _Exchange) -> None:
        request = flow.request
        content = request.data.content
        if not content:
            return
        exchange.sent += len(content)
        filling = self._filling(request.headers.get("content-type", "")) if not exchange.grpc else lambda: NOTHING
        body = RequestBody(filling, self._found_in_body(flow, exchange))
        try:
            body.decoding = Decoding(request.headers.get("content-encoding", ""))
            filled = await self._whole(exchange, body, content)
        except Refused:
            return
        except Undecodable as error:
            said = f"{self._handed.host}:{self._handed.port} is denied: the body cannot be looked through: {error}."
            self._deny(flow, exchange, Decision(False, "secrets", said))
            return
        request.headers.pop("content-encoding", None)
        request.data.content = filled
        request.headers["content-length"] = str(len(filled))

    def _look_for_strangers(self, found: set[str]) -> None:
        """Tell of placeholders that are sent to a host which is none of theirs. They travel as they are."""
        bound = {secret.placeholder for secret in self._machine.bound(self._handed.host, self._handed.port)}
        for placeholder in found - bound - self._alerted:
            if len(self._alerted) >= _ALERTS:
                return
            self._alerted.add(placeholder)
            name = self._machine.name_of(placeholder)
            self._tell(stray_placeholder(self._handed.host, self._handed.port, name))

    # -- answers

    def _text(self) -> Replacements:
        return self._machine.scrubber.text

    def _same_length(self) -> Replacements:
        return self._machine.scrubber.same_length

    def response_headers(self, flow: http.HTTPFlow) -> Awaitable[object] | None:
        """Take values out of an answer's head, and see that its body is looked through."""
        exchange: _Exchange = flow.metadata[_OURS]
        response = flow.response
        if response is None or exchange.decision is None or not exchange.decision.allowed:
            return None
        exchange.status = response.status_code
        scrubber = self._machine.scrubber
        headers = response.headers
        if not is_plainly_framed(value for name, value in headers.fields if name.lower() == b"transfer-encoding"):
            raise Undecodable("its transfer coding cannot be undone")
        headers.fields = scrubber.fields(headers.fields)
        response.data.reason = scrubber.text.whole(response.data.reason)
        for name in ("accept-ranges", "alt-svc"):
            headers.pop(name, None)
        if exchange.hooks is not None and exchange.seen is not None:
            short = response.status_code != 101 and hooked.is_short(response)
            if not short or not self.held.take(exchange, hooked.length_of(response)):
                return self._answer_through_hooks(flow, exchange, exchange.hooks, exchange.seen)
            self._look_through(flow, exchange, MAX_BODY)
            return None
        length = hooked.length_of(response)
        room = length <= _SMALL and self.held.take(exchange, length)
        self._look_through(flow, exchange, _SMALL if room else _NONE)
        return None

    async def _answer_through_hooks(
        self, flow: http.HTTPFlow, exchange: _Exchange, hooks: Chain, request: Request
    ) -> None:
        """The head of an answer whose body streams. A denial can only break it off: what streams has no other end."""
        response = flow.response
        if response is None:
            return
        before = hooked.response_of(response, None)
        try:
            after = await hooks.response(self._machine.hooking, request, before)
            if (after.status == 101) is not (before.status == 101):
                raise HookDenied("a hook makes another protocol of it")
        except HookDenied as denied:
            exchange.decision = self._by_hook(denied)
            flow.kill()
            self._note(exchange)
            return
        hooked.change_response(response, after, http2=flow.request.is_http2)
        exchange.status = after.status
        self._look_through(flow, exchange, _NONE)

    def _look_through(self, flow: http.HTTPFlow, exchange: _Exchange, short: int) -> None:
        """See that the body is; what has at most so many bytes as a whole."""
        response = flow.response
        if response is None:
            return
        if response.status_code == 101:
            self._upgrade(flow, exchange)
            return
        if has_no_body(flow):
            return
        headers = response.headers
        kind = headers.get("content-type", "").lower()
        grpc = kind.startswith(_GRPC) and not kind.startswith(_GRPC_IN_BASE64)
        decoding = Decoding(headers.get("content-encoding", ""))
        body = AnswerBody(self._same_length if grpc else self._text, decoding, grpc=grpc)
        length = headers.get("content-length", "")
        headers.pop("content-encoding", None)
        # What is packed may become much: it is held as a whole for hooks only
        short = short if exchange.hooks is not None or not decoding else _NONE
        if hooked.ends_with_its_head(response) or (length.isdecimal() and int(length) <= short):
            flow.metadata["atoll.body"] = body
            return
        if headers.pop("content-length", None) is not None and flow.request.http_version == "HTTP/1.1":
            headers["transfer-encoding"] = "chunked"

        def stream(data: bytes) -> Iterator[bytes]:
            for piece in body.feed(data):
                exchange.received += len(piece)
                yield piece

        response.stream = stream

    def response(self, flow: http.HTTPFlow) -> Awaitable[object] | None:
        """An answer is here as a whole, or its end is."""
        exchange: _Exchange = flow.metadata[_OURS]
        response = flow.response
        if response is None:
            return None
        body: AnswerBody | None = flow.metadata.pop("atoll.body", None)
        if exchange.decision is not None and exchange.decision.allowed:
            if response.trailers is not None:
                response.trailers = http.Headers(self._machine.scrubber.fields(response.trailers.fields))
            if exchange.hooks is not None and exchange.seen is not None and not response.stream:
                return self._whole_answer_through_hooks(flow, exchange, exchange.hooks, exchange.seen, body)
            if body is not None and response.data.content:
                return self._collected_answer(exchange, response, body)
        else:
            exchange.status = response.status_code
        self._note(exchange)
        return None

    async def _collected_answer(self, exchange: _Exchange, response: http.Response, body: AnswerBody) -> None:
        response.data.content = await self._whole(exchange, body, response.data.content or b"")
        response.headers["content-length"] = str(len(response.data.content))
        exchange.received += len(response.data.content)
        self._note(exchange)

    async def _whole_answer_through_hooks(
        self, flow: http.HTTPFlow, exchange: _Exchange, hooks: Chain, request: Request, body: AnswerBody | None
    ) -> None:
        response = flow.response
        if response is None:
            return
        try:
            before = hooked.response_of(response, await self._shown_to_hooks(exchange, response, body))
            after = await hooks.response(self._machine.hooking, request, before)
            if after.status == 101 and before.status != 101:
                raise HookDenied("a hook makes another protocol of it")
        except HookDenied as denied:
            self._deny(flow, exchange, self._by_hook(denied))
            exchange.status = flow.response.status_code if flow.response is not None else 0
            self._note(exchange)
            return
        hooked.change_response(response, after, http2=flow.request.is_http2)
        exchange.status = after.status
        if has_no_body(flow):
            response.data.content = b""
        else:
            response.data.content = after.body or b""
            response.headers["content-length"] = str(len(response.data.content))
            exchange.received += len(response.data.content)
        self._note(exchange)

    async def _shown_to_hooks(self, exchange: _Exchange, response: http.Response, body: AnswerBody | None) -> bytes:
        content = response.data.content or b""
        try:
            return await self._whole(exchange, body, content, MAX_BODY) if body is not None and content else content
        except Undecodable as error:
            raise HookDenied(f"no hook can read the body: {error}") from error

    def error(self, flow: http.HTTPFlow) -> None:
        """An exchange has come to nothing."""
        exchange: _Exchange | None = flow.metadata.get(_OURS)
        if exchange is None:
            return
        host = f"{self._handed.host}:{self._handed.port}"
        if exchange.decision is None:
            exchange.decision = Decision(False, "unreadable", f"{host} is denied: the request is not well formed.")
        elif exchange.decision.allowed:
            exchange.failed = True
            why = flow.metadata.get(UNREACHED)
            broke = f"The exchange with {host} broke off{self.why and f': {self.why}'}."
            said = f"{host} cannot be reached: {why}." if why else broke
            exchange.decision = Decision(False, "unreachable", said)
        self._note(exchange)

    def _note(self, exchange: _Exchange) -> None:
        self.held.give(exchange)
        decision = exchange.decision
        if exchange.noted or decision is None:
            return
        exchange.noted = True
        verdict = Verdict.FAILED if exchange.failed else Verdict.ALLOWED if decision.allowed else Verdict.DENIED
        self._tell(
            Passage(
                began=exchange.began,
                host=self._handed.host,
                port=self._handed.port,
                verdict=verdict,
                rule=decision.rule,
                detail=decision.sentence,
                sent=exchange.sent,
                received=exchange.received,
                seconds=round(time.monotonic() - exchange.began_at, 3),
                kind=Kind.REQUEST,
                method=exchange.method,
                path=exchange.path,
                status=exchange.status,
            )
        )

    # -- WebSockets

    def _upgrade(self, flow: http.HTTPFlow, exchange: _Exchange) -> None:
        headers = flow.response.headers if flow.response is not None else http.Headers()
        if not exchange.websocket or "sec-websocket-extensions" in headers:
            raise ValueError("the server agrees to what nobody asked for")
        self._frames = {
            True: Frames(
                masked=True,
                messages=self._filling(""),
                control=lambda: NOTHING,
                found=self._found_in_body(flow, exchange),
            ),
            False: Frames(masked=False, messages=self._text, control=self._same_length),
        }

    def frames(self, data: bytes, *, from_client: bool) -> bytes:
        """Bytes of a WebSocket, as they go on. BadFrame."""
        if not self._frames:
            raise BadFrame("there is none")
        return self._frames[from_client].feed(data)
