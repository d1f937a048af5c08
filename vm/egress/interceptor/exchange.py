"""What becomes of each request and its answer on one connection: checked, filled with values, looked through, noted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mitmproxy import http

from vm.api import Secret
from vm.egress.explain import HEADERS, explanation
from vm.egress.handover import HandOver
from vm.egress.interceptor import substitute
from vm.egress.interceptor.bodies import AnswerBody, RequestBody, whole
from vm.egress.interceptor.coding import Decoding, Undecodable
from vm.egress.interceptor.frames import BadFrame, Frames
from vm.egress.interceptor.known import Machine
from vm.egress.interceptor.layers import UNREACHED
from vm.egress.interceptor.requests import Asked, is_websocket, objection, shown_path
from vm.egress.journal import Kind, Passage, Verdict, stray_placeholder
from vm.egress.policy import Decision

_SMALL = 65_536  # bytes of an answer that is looked through as a whole, so that it keeps a length
_COLLECTED = 2**20  # of a request's body with values in it, for the same reason
_ALERTS = 100  # for one connection: a program that sends a foreign placeholder does so again and again
_OURS = "atoll"
_GRPC = "application/grpc"


@dataclass(slots=True)
class _Exchange:
    """One request, from its head to the end of its answer."""

    method: str
    path: str
    fields: list[tuple[bytes, bytes]]
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


class Exchanges:
    """Those of one connection. Its methods are mitmproxy's hooks; `tell` is told of requests and alerts."""

    def __init__(self, handed: HandOver, machine: Machine, tell: Callable[[Passage], None]) -> None:
        self._handed = handed
        self._machine = machine
        self._tell = tell
        self._alerted: set[str] = set()
        self._frames: dict[bool, Frames] = {}

    # -- requests

    def request_headers(self, flow: http.HTTPFlow) -> None:
        """Decide about a request, and put values into its head."""
        request, handed = flow.request, self._handed
        asked = Asked(
            http2=request.is_http2,
            method=request.data.method,
            target=request.data.path,
            authority=request.data.authority,
            fields=request.headers.fields,
        )
        exchange = _Exchange(
            method=request.data.method[:32].decode("latin-1"),
            path=shown_path(asked.target),
            fields=list(asked.fields),
        )
        flow.metadata[_OURS] = exchange
        if flow.error is not None:
            return  # mitmproxy refuses it by itself, and says so in `error`
        decision = handed.denied or objection(asked, host=handed.host, port=handed.port, sni=flow.client_conn.sni)
        exchange.failed = handed.failed
        decision = decision or self._machine.policy.judge(handed.host, handed.port, handed.address)
        exchange.decision = decision
        if not decision.allowed:
            self._deny(flow, exchange, decision)
            return
        exchange.secrets = self._machine.bound(handed.host, handed.port)
        try:
            self._fill(flow, exchange, asked)
        except substitute.Unfit as error:
            self._deny(flow, exchange, Decision(False, "secrets", f"{handed.host}:{handed.port} is denied: {error}."))

    def _deny(self, flow: http.HTTPFlow, exchange: _Exchange, decision: Decision) -> None:
        exchange.decision = decision
        status, text = explanation(self._handed.host, self._handed.port, decision, failed=exchange.failed)
        if decision.rule == "host mismatch" and flow.request.is_http2:
            status = 421  # a client that may use one connection for several hosts then makes another
        fields = dict(HEADERS)
        if flow.request.is_http2:
            del fields["Connection"]
        flow.response = http.Response.make(status, "" if flow.request.method == "HEAD" else text, fields)

    def _fill(self, flow: http.HTTPFlow, exchange: _Exchange, asked: Asked) -> None:
        request, secrets = flow.request, exchange.secrets
        self._look_for_strangers(substitute.placeholders(asked.fields, asked.target), secrets)
        headers = http.Headers(substitute.in_headers(asked.fields, secrets))
        request.headers = headers
        request.data.path = substitute.in_target(asked.target, secrets)
        content_type = headers.get("content-type", "")
        exchange.grpc = content_type.startswith(_GRPC)
        exchange.websocket = is_websocket(asked)
        self._ask_for_what_can_be_read(headers, exchange, http2=asked.http2)
        body = RequestBody(
            substitute.in_body(content_type, secrets), lambda found: self._look_for_strangers(found, secrets)
        )
        if not body.replacements:
            request.stream = self._passed(exchange, body)
            return
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) <= _COLLECTED:
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

    def _passed(self, exchange: _Exchange, body: RequestBody) -> Callable[[bytes], Iterator[bytes] | bytes]:
        def stream(data: bytes) -> Iterator[bytes] | bytes:
            exchange.sent += len(data)
            return body.feed(data)

        return stream

    def request(self, flow: http.HTTPFlow) -> None:
        """A request is here as a whole; its body was collected if values must go into it."""
        exchange: _Exchange = flow.metadata[_OURS]
        request = flow.request
        content = request.data.content
        if exchange.decision is None or not exchange.decision.allowed or not content:
            return
        exchange.sent += len(content)
        replacements = substitute.in_body(request.headers.get("content-type", ""), exchange.secrets)
        body = RequestBody(replacements, lambda found: self._look_for_strangers(found, exchange.secrets))
        try:
            body.decoding = Decoding(request.headers.get("content-encoding", ""))
            filled = whole(body, content)
        except Undecodable as error:
            said = f"{self._handed.host}:{self._handed.port} is denied: the body cannot be looked through: {error}."
            self._deny(flow, exchange, Decision(False, "secrets", said))
            return
        request.headers.pop("content-encoding", None)
        request.data.content = filled
        request.headers["content-length"] = str(len(filled))

    def _look_for_strangers(self, found: set[str], secrets: tuple[Secret, ...]) -> None:
        """Tell of placeholders that are sent to a host which is none of theirs. They travel as they are."""
        bound = {secret.placeholder for secret in secrets}
        for placeholder in found - bound - self._alerted:
            if len(self._alerted) >= _ALERTS:
                return
            self._alerted.add(placeholder)
            name = self._machine.name_of(placeholder)
            self._tell(stray_placeholder(self._handed.host, self._handed.port, name))

    # -- answers

    def response_headers(self, flow: http.HTTPFlow) -> None:
        """Take values out of an answer's head, and see that its body is looked through."""
        exchange: _Exchange = flow.metadata[_OURS]
        response = flow.response
        if response is None or exchange.decision is None or not exchange.decision.allowed:
            return
        exchange.status = response.status_code
        scrubber = self._machine.scrubber
        headers = response.headers
        headers.fields = tuple(
            (name, scrubber.text.whole(value)) for name, value in headers.fields if scrubber.text.whole(name) == name
        )
        response.data.reason = scrubber.text.whole(response.data.reason)
        for name in ("accept-ranges", "alt-svc"):
            headers.pop(name, None)
        if response.status_code == 101:
            self._upgrade(flow, exchange)
            return
        if flow.request.method == "HEAD" or response.status_code in (204, 304):
            return
        grpc = headers.get("content-type", "").startswith(_GRPC)
        decoding = Decoding(headers.get("content-encoding", ""))
        body = AnswerBody(scrubber.same_length if grpc else scrubber.text, decoding, grpc=grpc)
        length = headers.get("content-length", "")
        headers.pop("content-encoding", None)
        if length.isdecimal() and int(length) <= _SMALL:
            flow.metadata["atoll.body"] = body
            return
        if headers.pop("content-length", None) is not None and flow.request.http_version == "HTTP/1.1":
            headers["transfer-encoding"] = "chunked"

        def stream(data: bytes) -> Iterator[bytes]:
            for piece in body.feed(data):
                exchange.received += len(piece)
                yield piece

        response.stream = stream

    def response(self, flow: http.HTTPFlow) -> None:
        """An answer is here as a whole, or its end is."""
        exchange: _Exchange = flow.metadata[_OURS]
        response = flow.response
        if response is None:
            return
        if exchange.decision is not None and exchange.decision.allowed:
            if response.trailers is not None:
                scrub = self._machine.scrubber.text.whole
                response.trailers = http.Headers([(name, scrub(value)) for name, value in response.trailers.fields])
            body: AnswerBody | None = flow.metadata.pop("atoll.body", None)
            if body is not None and response.data.content:
                response.data.content = whole(body, response.data.content)
                response.headers["content-length"] = str(len(response.data.content))
                exchange.received += len(response.data.content)
        else:
            exchange.status = response.status_code
        self._note(exchange)

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
            said = f"{host} cannot be reached: {why}." if why else f"The exchange with {host} broke off."
            exchange.decision = Decision(False, "unreachable", said)
        self._note(exchange)

    def _note(self, exchange: _Exchange) -> None:
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
        scrubber = self._machine.scrubber
        filling = substitute.in_body("", exchange.secrets)
        self._frames = {
            True: Frames(masked=True, messages=filling, control=type(filling)({})),
            False: Frames(masked=False, messages=scrubber.text, control=scrubber.same_length),
        }

    def frames(self, data: bytes, *, from_client: bool) -> bytes:
        """Bytes of a WebSocket, as they go on. BadFrame."""
        if not self._frames:
            raise BadFrame("there is none")
        return self._frames[from_client].feed(data)
