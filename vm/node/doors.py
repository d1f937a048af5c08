"""The door of each machine: its gate and its resolver, at the sockets in its namespace. Shut until it is somebody's.

A door belongs to a body, since a namespace does; names and secrets belong to a machine, for all its life. Secrets are
in memory only: a machine whose secrets another node knew keeps its door shut until they are told again.
"""

from __future__ import annotations

import asyncio
import logging
import secrets as randomness
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address

from vm.api import EgressPolicy, MachineId, Secret
from vm.egress.gate import Gate
from vm.egress.hooks import parse_hooks
from vm.egress.journal import Passage
from vm.egress.policy import Policy
from vm.egress.refused import Refusals
from vm.egress.resolver import NamesFile, VirtualNames, respond
from vm.egress.spool import Spool
from vm.egress.turns import Turns
from vm.egress.upstream import Upstream
from vm.errors import HypervisorError
from vm.net.addresses import is_own
from vm.net.sockets import DoorSockets
from vm.node.config import NodeConfig
from vm.node.interceptors import Interceptors
from vm.node.records import Record
from vm.storage.layout import BodyId, Layout

log = logging.getLogger("atoll.node")

_LATE = 10.0  # seconds for which requests of a door that was shut are still heard of
_LOOKUPS_AT_ONCE = 8  # in one turn of the loop: others have lookups and connections, too


@dataclass(slots=True)
class _Door:
    sockets: DoorSockets
    names: VirtualNames
    gate: Gate
    token: str  # what stands for it where connections are handed over


class Doors:
    """All doors of a node. `made` and `unmade` may be called from any thread, the rest from the event loop."""

    def __init__(self, config: NodeConfig, layout: Layout) -> None:
        """HypervisorError if what the administrator opened cannot be read."""
        self._layout = layout
        self._patience = config.egress_ask_seconds
        self._limit = config.egress_connections
        self._turns = Turns()
        try:
            self._refusals = Refusals(config.egress_internal_allow, is_own)
            self._upstream = Upstream(resolver_address(config.egress_dns))
            self._hooks = parse_hooks(config.egress_hooks)
        except ValueError as error:
            raise HypervisorError(f"the egress settings cannot be read: {error}") from error
        try:
            self.spool = Spool(layout.journal)
        except OSError as error:
            raise HypervisorError(f"the journal of connections cannot be kept: {error}") from error
        self._made: dict[BodyId, DoorSockets] = {}
        self._open: dict[BodyId, _Door] = {}
        self._journals: dict[str, Callable[[Passage], None]] = {}
        self.interceptors = Interceptors(config, layout, self._heard)
        self._secrets: dict[MachineId, tuple[Secret, ...]] = {}
        self._waiting: set[BodyId] = set()  # for secrets

    # -- secrets

    def entrust(self, machine: MachineId, secrets: Sequence[Secret]) -> None:
        """Know all secrets of a machine from now on."""
        self._secrets[machine] = tuple(secrets)

    def distrust(self, machine: MachineId) -> None:
        """Know none of a machine's secrets any more. Repeatable."""
        self._secrets.pop(machine, None)

    def may_open(self, record: Record) -> bool:
        """Whether all is known that a machine's door needs."""
        return not record.has_secrets or record.machine in self._secrets

    # -- doors

    def made(self, body: BodyId, sockets: DoorSockets) -> None:
        """A body has its namespace, and these in it."""
        self.unmade(body)
        self._made[body] = sockets

    def unmade(self, body: BodyId) -> None:
        """Let go of what was made for a body that nobody waits for any more, as after a step that was too slow."""
        sockets = self._made.pop(body, None)
        if sockets is not None:
            sockets.close()

    def open(self, record: Record) -> None:
        """Let a machine's policy hold from now on; where its secrets are not known, `change` does.

        HypervisorError if that is not possible: it has no network then.
        """
        sockets = self._made.get(record.body)
        if sockets is None:
            raise HypervisorError("its namespace has no sockets")
        if not self.may_open(record):
            log.warning("machine %s has no network until its secrets are told again", record.machine)
            self._waiting.add(record.body)
            return
        try:
            names = NamesFile(self._layout.names(record.machine)).load()
            token = randomness.token_hex(32)
            secrets = self._secrets.get(record.machine, ())
            journal = partial(self.spool.add, record.machine)
            gate = Gate(
                sockets.tcp,
                policy=policy_of(record.spec.policy),
                names=names,
                refusals=self._refusals,
                upstream=self._upstream,
                journal=journal,
                limit=self._limit,
                patience=self._patience,
                secrets=secrets,
                token=token,
                interceptor=self.interceptors.port,
                hooks=self._hooks,
                turns=self._turns,
            )
            door = _Door(sockets, names, gate, token)
            _drain(sockets)
            gate.open()
        except (OSError, ValueError) as error:
            raise HypervisorError(f"its network could not be opened: {error}") from error
        del self._made[record.body]
        self._waiting.discard(record.body)
        self._open[record.body] = door
        self._journals[token] = journal
        self.interceptors.know(token, record.spec.policy, secrets)
        asyncio.get_running_loop().add_reader(sockets.udp, self._lookups, door)

    async def change(self, record: Record) -> None:
        """Let another policy and other secrets hold; connections that they forbid are reset when this returns.

        HypervisorError if a door that waited for it cannot be opened.
        """
        door = self._open.get(record.body)
        if door is not None:
            secrets = self._secrets.get(record.machine, ())
            self.interceptors.know(door.token, record.spec.policy, secrets)
            door.gate.change(policy_of(record.spec.policy), secrets)
            await self.interceptors.told()
        elif record.body in self._waiting:
            self.open(record)

    def shut(self, body: BodyId) -> None:
        """Nothing of that body passes any more. Repeatable."""
        self._waiting.discard(body)
        door = self._open.pop(body, None)
        if door is not None:
            asyncio.get_running_loop().remove_reader(door.sockets.udp)
            door.gate.close()
            door.sockets.close()
            self.interceptors.forget(door.token)
            # Its interceptors tell of what broke off with it only now
            asyncio.get_running_loop().call_later(_LATE, self._journals.pop, door.token, None)
        self.unmade(body)

    async def close(self) -> None:
        """Shut all of them: without a node there is no network."""
        gates = [door.gate for door in self._open.values()]
        for body in [*self._open, *self._made]:
            self.shut(body)
        for gate in gates:
            await gate.wait_closed()
        self._upstream.close()
        await self.interceptors.close()
        self.spool.close()

    def _heard(self, token: str, passage: Passage) -> None:
        journal = self._journals.get(token)
        if journal is not None:
            journal(passage)

    def _lookups(self, door: _Door) -> None:
        for _ in range(_LOOKUPS_AT_ONCE):
            try:
                message, peer = door.sockets.udp.recvfrom(2048)
            except OSError:
                return
            reply = respond(message, door.names, self._refusals.opens)
            if reply is not None:
                with suppress(OSError):  # a guest that does not take its answers asks again
                    door.sockets.udp.sendto(reply, peer)


def policy_of(policy: EgressPolicy) -> Policy:
    """Its rules. ValueError names the bad pattern."""
    return Policy(policy.allow_net, policy.deny, policy.ask)


def resolver_address(text: str) -> tuple[str, int] | None:
    """`host:port` of a resolver, host an address; None where none is named. ValueError."""
    if not text:
        return None
    host, colon, port = text.rpartition(":")
    if not colon:
        host, port = text, "53"
    host = host.removeprefix("[").removesuffix("]")
    if not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ValueError(f"{text!r} is no address and port of a resolver")
    return str(ip_address(host)), int(port)


def _drain(sockets: DoorSockets) -> None:
    # What was asked while it was shut has been given up long ago
    with suppress(OSError):
        while True:
            sockets.udp.recv(2048)
