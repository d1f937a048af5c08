"""The decision about one connection with all that is known of it by now: policy, and what is always refused. Pure."""

from __future__ import annotations

from vm.egress.connection import Connection, Denied, always_refused
from vm.egress.peek import Claim
from vm.egress.policy import Decision, Policy
from vm.egress.refused import Refusals
from vm.egress.resolver import VIRTUAL


class Judge:
    """Goes by one policy: another one is another judge."""

    def __init__(self, policy: Policy, refusals: Refusals) -> None:
        self._policy = policy
        self._refusals = refusals
        # What the administrator opens is open to whoever names it, not to everybody who may reach the internet
        self._listed = policy.allow is not None

    def dialled(self, connection: Connection) -> Decision:
        """By whom the guest dialled."""
        host, port = connection.host, connection.port
        if isinstance(host, str):
            what = self._refusals.of_name(host, port, listed=self._listed)
        elif host in VIRTUAL and self._refusals.of_address(host, port) is not None:
            return Decision(False, "unknown address", f"{host}:{port} was never the address of a name.")
        else:
            what = self._refusals.of_address(host, port, listed=self._listed)
        if what is not None:
            return always_refused(host, port, what)
        return self._policy.judge(host, port)

    def now(self, connection: Connection) -> Decision:
        """By that, by whom the client says it talks to, and by the address that would be reached."""
        first = self.dialled(connection)
        host, port, address = connection.host, connection.port, connection.address
        if address is None or not isinstance(host, str) or not (first.allowed or first.open):
            claimed = connection.claim.host if connection.claim is not None else None
            if first.allowed and isinstance(claimed, str) and not isinstance(host, str):
                return self._denied_by_name(claimed, port) or first
            return first
        what = self._refusals.of_address(address, port, host, listed=self._listed)
        if what is not None:
            return always_refused(host, port, f"{what}: it resolves to {address}")
        return self._policy.judge(host, port, address)

    def require_agreement(self, connection: Connection, claim: Claim, *, nameless: bool) -> None:
        """What a client says itself must be whom it dialled. Denied. `nameless`: it may name nobody."""
        host, port = connection.host, connection.port
        if claim.host is None:
            # An address may be that of a name that is denied
            if nameless and (isinstance(host, str) or not any(rule.name for rule in self._policy.deny)):
                return
            # Nobody names an address in TLS: a rule for that address is needed, not only none against it
            if not isinstance(host, str) and any(rule.matches(host, port) for rule in self._policy.allow or ()):
                return
            raise Denied(Decision(False, "no SNI", f"{host}:{port} is denied: TLS without a server name."))
        if isinstance(host, str) or not isinstance(claim.host, str):
            agrees = claim.host == host
        else:
            agrees = True  # the address was asked for and is judged; a name that is denied is below
            what = self._refusals.of_name(claim.host, port, listed=self._listed)
            if what is not None:
                raise Denied(always_refused(claim.host, port, what))
            if (denied := self._denied_by_name(claim.host, port)) is not None:
                raise Denied(denied)
        if not agrees or claim.port not in (None, port):
            said = f"{host}:{port} is denied: the client asked there for {claim.host}."
            raise Denied(Decision(False, "host mismatch", said))

    def _denied_by_name(self, name: str, port: int) -> Decision | None:
        denied = any(rule.matches(name, port) for rule in self._policy.deny)
        return self._policy.judge(name, port) if denied else None
