"""Host names in the one spelling in which they are compared, whoever wrote them. Pure."""

from __future__ import annotations

import re

import idna

MAX_NAME = 253
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


def fold(name: str) -> str:
    """A name in lower case, without its trailing dot, international labels as `xn--`. ValueError says what is wrong.

    What a resolver could take for an address in any of its spellings (decimal, octal, hexadecimal) is not a name.
    """
    if len(name) > 4 * MAX_NAME:
        raise ValueError("the name is too long")
    folded = name
    if not folded.isascii():
        try:
            folded = idna.encode(folded, uts46=True).decode("ascii")
        except UnicodeError as error:
            raise ValueError(f"not a host name: {error}") from error
    folded = folded.lower().removesuffix(".")
    if not folded:
        raise ValueError("the name is empty")
    if len(folded) > MAX_NAME:
        raise ValueError("the name is too long")
    labels = folded.split(".")
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise ValueError(
                f"not a host name: {label!r} is no part of one" if label else "not a host name: empty part"
            )
    if _NUMBER.fullmatch(labels[-1]):
        raise ValueError("not a host name: it ends in a number")
    return folded
