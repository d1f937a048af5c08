"""docs/abuse-cases.md leaves out no abuse that must be held, and each row's test and control are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
DOCUMENT = TESTS.parent / "docs" / "abuse-cases.md"
ITSELF = "the same"
CASES = {  # that were asked for, with what the row says of them
    "hard-coded IP": "an address instead of a name",
    "allowed SNI to a foreign address": "an allowed server name at another address",
    "Host or :authority other than SNI": "`Host` or `:authority` other than the server name",
    "second request on a kept-alive connection": "another host in a later request",
    "HTTP/2 coalescing": "HTTP/2 coalescing",
    "absolute-form target": "an absolute target",
    "CONNECT inside an allowed connection": "CONNECT within a connection",
    "TLS without SNI": "TLS without a server name",
    "silent client": "a client that says nothing",
    "ClientHello split over segments and records": "cut over segments and records",
    "duplicate SNI": "two server names",
    "IP-literal SNI": "an address as one",
    "upper-case SNI": "capitals",
    "trailing-dot SNI": "a dot behind it",
    "ECH": "an encrypted ClientHello",
    "rebinding with TTL 0": "rebound between two lookups",
    "a name that resolves to private or link-local": "resolves to a private, link-local",
    "decimal, octal, hex and IPv4-mapped addresses": "decimal, octal, hexadecimal and IPv4-mapped",
    "TCP DNS, DoT, DoH": "TCP, TLS (DoT) and HTTPS (DoH)",
    "long-label exfiltration": "long labels",
    "AAAA, HTTPS, TXT queries": "AAAA, HTTPS, TXT",
    "fragments": "fragments",
    "redirect to a foreign host": "a redirect to a host that is not allowed",
    "placeholder in a request": "in the path, query, JSON, a form, multipart, gzip, br",
    "placeholder chunk-split": "a placeholder cut over chunks",
    "value echoed in body, base64": "comes back in a body, base64",
    "value echoed in a header": "comes back in a header",
    "value in a split SSE": "several server-sent events",
    "value in range requests": "in each of two ranges",
    "value in compressed answers": "comes back compressed",
    "value in compressed frames": "frames of a WebSocket, compressed or not",
    "CR and LF in a value": "line ends in a value",
    "smuggling by CL and TE": "`Content-Length` with `Transfer-Encoding`",
    "TRACE": "TRACE",
    "h2c upgrade": "an upgrade to h2c",
    "expired, self-signed, wrong-name upstream": "certificate is old, another's, or nobody's",
    "two names on one minted certificate": "a minted certificate that stands for two names",
    "another sandbox's placeholder": "another sandbox's placeholder",
    "forged hand-over token": "a forged hand-over token",
    "10,000 connections": "10,000 connections",
    "the value in any log, event, error page": "a value in a log, an event, an error",
    "the value in a core file": "a value in a core file",
    "fronting inside an allowed CDN": "Fronting within a content network",
    "a host that transforms and returns a value": "hands a value out in a spelling of its own",
}


def _rows() -> list[tuple[str, str, str]]:
    lines = [line for line in DOCUMENT.read_text().split("\n") if line.startswith("| ")]
    cells = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    return [row for row in cells if row[0] != "abuse"]  # type: ignore[misc]


@pytest.mark.parametrize("case", CASES)
def test_no_abuse_is_left_out(case: str) -> None:
    """It has a row; or, where nothing can hold it, is said to be so."""
    unheld = DOCUMENT.read_text().partition("## What nothing holds")[2]
    assert any(CASES[case] in said for said in [unheld, *(abuse for abuse, _test, _control in _rows())])


def test_what_the_table_names_is_tested() -> None:
    """Each row names a test, and as its control another one or none but itself."""
    for abuse, test, control in _rows():
        assert _named(test), abuse
        assert control == ITSELF or _named(control), abuse
        assert not set(_named(test)) & set(_named(control)), abuse
        for path, name in _named(test) + _named(control):
            tree = ast.parse((TESTS / path).read_text())
            assert name in {
                node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            }, name


def _named(cell: str) -> list[tuple[str, str]]:
    return re.findall(r"`([\w/]+\.py)::(\w+)`", cell)
