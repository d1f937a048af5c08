"""Translates JavaScript regular expressions and shell globs to Python's `re`; pure."""

from __future__ import annotations

import re

from vm.guest.agent.errors import Refusal

_FLAGS = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL}
_IGNORED_FLAGS = "dgyuv"
_MAX_SOURCE = 10_000
_POSIX = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7F",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1F\x7F",
    "digit": r"\d",
    "graph": r"\x21-\x7E",
    "lower": "a-z",
    "print": r"\x20-\x7E",
    "punct": r"!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~",
    "space": r"\s\v",
    "upper": "A-Z",
    "word": r"\w",
    "xdigit": r"\dA-Fa-f",
}


def javascript(source: str, flags: str = "") -> re.Pattern[str]:
    """The pattern of `new RegExp(source, flags)`. Refusal where it is invalid, or more than Python can say."""
    if len(source) > _MAX_SOURCE:
        raise Refusal("SyntaxError", "Invalid regular expression: too long", "EINVAL")
    number = re.ASCII  # JavaScript's \d, \w and \b know ASCII only
    for flag in flags:
        if flag in _FLAGS:
            number |= _FLAGS[flag]
        elif flag not in _IGNORED_FLAGS:
            raise Refusal("SyntaxError", f"Invalid regular expression flag: {flag}", "EINVAL")
    try:
        return re.compile(_translated(source, multiline="m" in flags, unicode="u" in flags or "v" in flags), number)
    except (re.error, OverflowError, RecursionError, ValueError) as error:
        raise Refusal("SyntaxError", f"Invalid regular expression: /{source}/: {error}", "EINVAL") from error


def _translated(source: str, *, multiline: bool, unicode: bool) -> str:
    out: list[str] = []
    at = 0
    in_class = False
    dash = False  # the next dash in a class makes a range of what is before and behind it
    while at < len(source):
        rest = source[at:]
        char = source[at]
        if char == "\\":
            dash = in_class and out[-1] != "-" and rest[1:2] not in tuple("dDwWsS")
            piece, used = _escape(rest, in_class=in_class, unicode=unicode)
            out.append(piece)
            at += used
        elif in_class:
            in_class = char != "]"
            ranges = char == "-" and dash
            dash = not ranges and out[-1] != "-"
            # All of these begin set operations in some future Python
            out.append("\\" + char if char in "[&~|" or (char == "-" and not ranges) else char)
            at += 1
        elif rest.startswith("[^]"):
            out.append(r"[\s\S]")
            at += 3
        elif rest.startswith("[]"):
            out.append("(?!)")
            at += 2
        elif char == "[":
            in_class, dash = True, False
            negated = rest.startswith("[^")
            out.append("[^" if negated else "[")
            at += 2 if negated else 1
        elif rest.startswith("(?<") and not rest.startswith(("(?<=", "(?<!")):
            out.append("(?P<")
            at += 3
        elif char == "$" and not multiline:
            out.append(r"\Z")
            at += 1
        elif char == "{" and not re.match(r"\{\d+(,\d*)?\}", rest):
            out.append(r"\{")
            at += 1
        else:
            out.append(char)
            at += 1
    return "".join(out)


def _escape(rest: str, *, in_class: bool, unicode: bool) -> tuple[str, int]:
    """What a backslash and what follows it become, and how many characters they were."""
    if len(rest) == 1:
        raise ValueError("\\ at end of pattern")
    letter = rest[1]
    if match := re.match(r"\\k<([^>]*)>", rest):
        return f"(?P={match[1]})", match.end()
    if unicode and (match := re.match(r"\\u\{([0-9A-Fa-f]{1,6})\}", rest)):
        return re.escape(chr(int(match[1], 16))), match.end()
    if match := re.match(r"\\u([0-9A-Fa-f]{4})|\\x([0-9A-Fa-f]{2})", rest):
        return re.escape(chr(int(match[1] or match[2], 16))), match.end()
    if match := re.match(r"\\c([A-Za-z])", rest):
        return f"\\x{ord(match[1].upper()) - 64:02x}", match.end()
    if letter in "pP" and unicode:
        raise ValueError("Unicode property escapes are not supported here")
    if letter == "0" and not rest[2:3].isdigit():
        return r"\x00", 2
    if letter in "dDwWsSbBfnrtv" or letter.isdigit():
        # Inside a class \b is the backspace, in both languages
        if in_class and letter == "B":
            return "B", 2
        return rest[:2], 2
    return re.escape(letter), 2


# -- globs -------------------------------------------------------------------------------------------------------------


def is_glob(segment: str) -> bool:
    """Whether a path segment has any pattern in it."""
    return bool(re.search(r"[*?\[{\\]|[+@!]\(", segment))


def glob_segment(segment: str, *, extended: bool, ignore_case: bool) -> re.Pattern[str]:
    """The pattern that matches whole names. Refusal if the glob has no meaning."""
    if len(segment) > _MAX_SOURCE:
        raise Refusal("TypeError", "Invalid glob: too long", "EINVAL")
    body, _ = _glob(segment, 0, extended=extended, until="")
    try:
        return re.compile(f"(?:{body})\\Z", re.DOTALL | (re.IGNORECASE if ignore_case else 0))
    except (re.error, RecursionError, OverflowError) as error:
        raise Refusal("TypeError", f"Invalid glob: {segment!r}: {error}", "EINVAL") from error


def _glob(text: str, at: int, *, extended: bool, until: str) -> tuple[str, int]:
    """Translate up to one of the characters in `until`; says where that is."""
    out: list[str] = []
    while at < len(text):
        char = text[at]
        if char in until:
            break
        if char == "\\" and at + 1 < len(text):
            out.append(re.escape(text[at + 1]))
            at += 2
        elif extended and char in "?*+@!" and text[at + 1 : at + 2] == "(" and ")" in text[at:]:
            options, at = _alternatives(text, at + 2, "|", ")")
            group = f"(?:{'|'.join(options)})"
            wanted = {"?": f"{group}?", "*": f"{group}*", "+": f"{group}+", "@": group}
            if char in wanted:
                out.append(wanted[char])
                continue
            # Everything but: no way to go on from one of these to the end, so what follows is part of the refusal
            rest, at = _glob(text, at, extended=extended, until=until)
            out.append(f"(?!{group}{rest}\\Z).*{rest}")
        elif char == "*":
            while text[at : at + 1] == "*":
                at += 1
            out.append(".*")
        elif char == "?":
            out.append(".")
            at += 1
        elif char == "[" and (match := re.match(r"\[[!^]?\]?(?:\[:\w+:\]|[^\]])*\]", text[at:])):
            out.append(_class(match[0]))
            at += match.end()
        elif char == "{" and "}" in text[at:]:
            options, at = _alternatives(text, at + 1, ",", "}", extended=extended)
            out.append(f"(?:{'|'.join(options)})")
        else:
            out.append(re.escape(char))
            at += 1
    return "".join(out), at


def _alternatives(text: str, at: int, between: str, end: str, *, extended: bool = True) -> tuple[list[str], int]:
    options = []
    while True:
        option, at = _glob(text, at, extended=extended, until=between + end)
        options.append(option)
        if at >= len(text) or text[at] == end:
            return options, at + 1
        at += 1


def _class(text: str) -> str:
    body = text[1:-1]
    negated = body[:1] in ("!", "^")
    body = body[1:] if negated else body
    out = []
    at = 0
    while at < len(body):
        if (match := re.match(r"\[:(\w+):\]", body[at:])) and match[1] in _POSIX:
            out.append(_POSIX[match[1]])
            at += match.end()
        else:
            # A dash is a range's between two characters, and itself everywhere else
            ends = body[at : at + 3 : 2] if len(body) > at + 2 and body[at + 1] == "-" else body[at]
            out.append("-".join(map(re.escape, ends)))
            at += 2 * len(ends) - 1
    return f"[{'^' if negated else ''}{''.join(out)}]"
