"""What somebody is told whose connection or request is denied: as text for people, and as an HTTP answer. Pure."""

from __future__ import annotations

from vm.egress.policy import Decision, Host

_NOT_HIS_TO_ALLOW = ("always refused", "unknown address", "unreadable", "host mismatch", "secrets", "method")


def explanation(host: Host, port: int, decision: Decision, *, failed: bool = False) -> tuple[int, str]:
    """The status and the text of an answer: 403 for a denial, 502 for what was allowed and `failed`."""
    advice = ""
    if not failed:
        advice = f"\nRule: {decision.rule}\n"
        if decision.rule not in _NOT_HIS_TO_ALLOW:
            advice += f'To allow it, add "{host}:{port}" to the sandbox\'s allow_net.\n'
    return (502 if failed else 403), f"Atoll: {decision.sentence}\n{advice}"


HEADERS = {
    "Content-Type": "text/plain; charset=utf-8",
    "Connection": "close",
    "X-Atoll-Egress": "denied",
}


def answer(host: Host, port: int, decision: Decision, *, failed: bool = False) -> bytes:
    """The same as a whole HTTP/1 answer."""
    status, text = explanation(host, port, decision, failed=failed)
    body = text.encode()
    fields = {**HEADERS, "Content-Length": str(len(body))}
    reason = "Bad Gateway" if failed else "Forbidden"
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} {reason}\r\n{head}\r\n".encode() + body
