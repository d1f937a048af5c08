"""What an interceptor knows of one machine: its policy and its secrets, which may change at any time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from vm.api import Secret
from vm.egress.interceptor.budget import ALL, OF_MACHINE, Budget
from vm.egress.interceptor.forms import forms
from vm.egress.interceptor.replace import Replacements
from vm.egress.policy import Policy
from vm.egress.secrets import Bindings
from vm.egress.turns import Share, Turns

_RETIRED = 64
_HOOKING = 4  # calls of hooks at a time: those of other machines must not wait for all of one's
_UPSTREAMS = 4096  # connections to servers at a time, as many as it may have itself: one of HTTP/2 may want a hundred


@dataclass(frozen=True, slots=True)
class Scrubber:
    """What no answer may carry. `same_length` is for what counts bytes by itself."""

    text: Replacements
    same_length: Replacements

    def fields(self, fields: Sequence[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
        """Those of a head without values in them; one that has a value in its name is left out."""
        scrub = self.text.whole
        together = b"\n".join(part for field in fields for part in field)
        if scrub(together) == together:
            return tuple(fields)
        return tuple((name, scrub(value)) for name, value in fields if scrub(name) == name)


class Machine:
    """One machine. Values that it had before are looked for in answers still: somebody may remember them."""

    def __init__(self, policy: Policy, secrets: Sequence[Secret], turns: Turns) -> None:
        self.policy = policy
        self.secrets = tuple(secrets)
        self.hooking = asyncio.Semaphore(_HOOKING)
        self.upstreams = asyncio.Semaphore(_UPSTREAMS)
        self.room = Budget(OF_MACHINE, within=ALL)
        # Connections whose ends take nothing must leave some of it for requests
        self.waiting = Budget(OF_MACHINE // 2, within=self.room)
        self.share = Share(turns)
        self._retired: list[Secret] = []
        self._bindings = Bindings(secrets)
        self.scrubber = self._scrubber()

    def change(self, policy: Policy, secrets: Sequence[Secret]) -> None:
        """Let others hold from the next request on."""
        now = {secret.value for secret in secrets}
        before = {secret.value: secret for secret in [*self._retired, *self.secrets] if secret.value not in now}
        self._retired = list(before.values())[-_RETIRED:]
        self.policy, self.secrets = policy, tuple(secrets)
        self._bindings = Bindings(secrets)
        self.scrubber = self._scrubber()

    def bound(self, host: str, port: int) -> tuple[Secret, ...]:
        """The secrets that may go there."""
        return self._bindings.to(host, port)

    def name_of(self, placeholder: str) -> str | None:
        """The secret's name; None if the placeholder is another machine's, or of old."""
        return next((secret.name for secret in self.secrets if secret.placeholder == placeholder), None)

    def _scrubber(self) -> Scrubber:
        pairs = {
            form: secret.placeholder.encode()
            for secret in [*self._retired, *self.secrets]
            for form in forms(secret.value)
        }
        return Scrubber(Replacements(pairs), Replacements(pairs, same_length=True))
