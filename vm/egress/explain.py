"""What somebody is told whose connection or request is denied: as text for people, and as an HTTP answer. Pure."""

from __future__ import annotations

from vm.egress.policy import Decision, Host

_WORDS = frozenset(
    (
        "unknown address",
        "unreadable",
        "host mismatch",
        "secrets",
        "hook",
        "method",
        "connection limit",
        "no SNI",
        "interceptor",
    )
)
"""Rules that no list changes."""


def explanation(host: Host, port: int, decision: Decision, *, failed: bool = False) -> tuple[int, str]:
    """The status and the text of an answer: 403 for a denial, 502 for what was allowed and `failed`."""
    advice = ""
    if not failed:
        advice = f"\nRule: {decision.rule}\n{_remedy(host, port, decision.rule)}"
    return (502 if failed else 403), f"Atoll: {decision.sentence}\n{advice}"


def _remedy(host: Host, port: int, rule: str) -> str:
    if rule == "allow_net":
        return f'To allow it, add "{host}:{port}" to the sandbox\'s allow_net.\n'
    if rule == "no SNI" and not isinstance(host, str):
        return f'To allow it, add "{host}" to the sandbox\'s allow_net: a rule for that very address.\n'
    if rule == "always refused":
        return "The administrator of this installation opens hosts with ATOLL_EGRESS_INTERNAL_ALLOW.\n"
    if rule in _WORDS:
        return ""
    return (
        f'To allow it, remove the rule "{rule}" from the sandbox\'s deny_net, or ask an administrator of the '
        "organization, whose rule it may be.\n"
    )


def answer_headers(*, failed: bool) -> dict[str, str]:
    """Of an answer of ours; one that `failed` was allowed: nobody is to take what could not be reached for denied."""
    return {
        "Content-Type": "text/plain; charset=utf-8",
        "Connection": "close",
        "X-Atoll-Egress": "failed" if failed else "denied",
    }


def answer(host: Host, port: int, decision: Decision, *, failed: bool = False) -> bytes:
    """The same as a whole HTTP/1 answer."""
    status, text = explanation(host, port, decision, failed=failed)
    body = text.encode()
    fields = {**answer_headers(failed=failed), "Content-Length": str(len(body))}
    reason = "Bad Gateway" if failed else "Forbidden"
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} {reason}\r\n{head}\r\n".encode() + body
