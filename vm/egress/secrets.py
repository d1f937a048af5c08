"""What a machine's secrets must be like, and where each of them may go. Pure; no text made here holds a value."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from vm.api import Secret
from vm.egress.policy import Host, Rule, parse

PREFIX = "DENO_SECRET_PLACEHOLDER_"
PLACES = ("path", "query", "body")
MAX_SECRETS = 256
MAX_VALUE = 65_536  # bytes
_MAX_ALL = 2**18  # characters: they must fit into one record on the wire, escaped
_PLACEHOLDER = re.compile(PREFIX + "[0-9a-f]{32,128}")


def require_sane(secrets: Sequence[Secret]) -> None:
    """ValueError names the first secret that cannot be kept, and what is wrong with it."""
    if len(secrets) > MAX_SECRETS:
        raise ValueError(f"a machine has at most {MAX_SECRETS} secrets")
    if sum(len(secret.value) for secret in secrets) > _MAX_ALL:
        raise ValueError("the secrets of a machine are too long, taken together")
    placeholders = [secret.placeholder for secret in secrets]
    for secret in secrets:
        try:
            _require_sane(secret)
            if placeholders.count(secret.placeholder) > 1:
                raise ValueError("another one has the same placeholder")
        except ValueError as error:
            raise ValueError(f"the secret {secret.name[:100]!r}: {error}") from None


def _require_sane(secret: Secret) -> None:
    if not 0 < len(secret.name) <= 256:
        raise ValueError("a name of 1 to 256 characters is expected")
    if not _PLACEHOLDER.fullmatch(secret.placeholder):
        raise ValueError(f"its placeholder is not {PREFIX} and 32 hexadecimal digits")
    try:
        length = len(secret.value.encode())
    except UnicodeEncodeError:
        raise ValueError("its value is no text") from None
    if not 0 < length <= MAX_VALUE:
        raise ValueError(f"a value of 1 to {MAX_VALUE} bytes is expected")
    if not secret.hosts:
        raise ValueError("it must name at least one host")
    host_rules(secret)
    for place in secret.places:
        if place not in PLACES:
            raise ValueError(f"{place[:20]!r} is no place: {', '.join(PLACES)} are")


def host_rules(secret: Secret) -> list[Rule]:
    """The hosts of a secret as rules. ValueError names a pattern that is none, or an address."""
    rules = [parse(pattern) for pattern in secret.hosts]
    for rule in rules:
        if not rule.name:
            raise ValueError(f"{rule.text[:100]!r} is an address: secrets go to hosts with a name only")
    return rules


class Bindings:
    """Which of a machine's secrets may go where."""

    def __init__(self, secrets: Iterable[Secret] = ()) -> None:
        """ValueError if a secret is not sane."""
        self._rules = [(secret, host_rules(secret)) for secret in secrets]

    def to(self, host: Host, port: int) -> tuple[Secret, ...]:
        """Those that may go to this destination."""
        return tuple(secret for secret, rules in self._rules if any(rule.matches(host, port) for rule in rules))

    def any_on(self, port: int) -> bool:
        """Whether any of them may go to some host there."""
        return any(rule.port in (None, port) for _secret, rules in self._rules for rule in rules)


def placeholders_in(data: bytes | bytearray) -> list[str]:
    """What in there looks like a placeholder, whoever's it is."""
    return [found.decode("ascii") for found in _ANY.findall(data)]


_ANY = re.compile(_PLACEHOLDER.pattern.encode())
