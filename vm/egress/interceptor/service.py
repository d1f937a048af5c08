"""An interceptor process: takes connections that the gate hands over, and orders from its node.

Orders come over a socket pair, one record each (vm/node/wire.py), and each is answered when it holds: `setup` first,
then `machine` and `forget`. Back go answers, and records of requests, which are dropped rather than waited with.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections import Counter, deque
from dataclasses import asdict
from typing import Any

from vm.api import Secret
from vm.background import spawn
from vm.egress.handover import ACCEPTED, MAX_HEAD, REFUSED, read_head
from vm.egress.interceptor.certificates import Minting, Verifying
from vm.egress.interceptor.connection import Intercepted, make_options
from vm.egress.interceptor.hooks import Hooks
from vm.egress.interceptor.known import Machine
from vm.egress.interceptor.layers import install
from vm.egress.journal import Passage
from vm.egress.policy import Policy
from vm.egress.turns import Turns
from vm.node import wire

log = logging.getLogger("atoll.interceptor")

_SAYING = 5.0  # seconds in which whoever connects must say who he is
_KEPT = 10_000  # records of requests that wait for the node
_SHARE = 2_000  # of these, of one machine: the others' must not be lost for its flood
_BACKLOG = 1024
_LOOKS = 3  # of the loop's, in which what came for a connection is taken by its task, looked through and passed on
_PIECE = 65_536


class Service:
    """Everything of one process; `run` ends when the node's side of `control` does."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._machines: dict[str, Machine] = {}
        self._options = make_options()
        self._minting: Minting | None = None
        self._verifying: Verifying | None = None
        self._hooks = Hooks()
        self._resting = 0.0
        self._turns = Turns(_LOOKS)
        self._passages: deque[tuple[str, Passage]] = deque()
        self._waiting: Counter[str] = Counter()
        self._lost = 0
        self._more = asyncio.Event()

    async def run(self) -> None:
        """Serve until the node is gone."""
        install()
        reader, writer = await asyncio.open_connection(sock=self._control, limit=_PIECE)
        server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, backlog=_BACKLOG, limit=_PIECE)
        port = server.sockets[0].getsockname()[1]
        telling = spawn(self._tell_for_ever(writer), name="records")
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    order = await wire.read_record(reader)
                    self._obey(order)
                    writer.write(wire.record({"done": order["number"], "port": port}))
                    await writer.drain()
        finally:
            telling.cancel()
            server.close()
            self._hooks.close()

    def _obey(self, order: dict[str, Any]) -> None:
        if order["do"] == "setup":
            self._minting = Minting(order["certificate"].encode(), order["key"].encode())
            self._verifying = Verifying(_file_of(order["authorities"]))
            self._hooks = Hooks(order["hooks"], order["hooks_path"])
            self._resting = order["resting"]
        elif order["do"] == "forget":
            self._machines.pop(order["token"], None)
        else:
            policy = Policy(order["allow_net"], order["deny"])
            secrets = [Secret(**secret) for secret in order["secrets"]]
            known = self._machines.get(order["token"])
            if known is None:
                self._machines[order["token"]] = Machine(policy, secrets, self._turns)
            else:
                known.change(policy, secrets)

    # -- connections

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_SAYING):
                head = await reader.readuntil(b"\r\n\r\n")
            handed = read_head(head) if len(head) <= MAX_HEAD else None
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            handed = None
        machine = self._machines.get(handed.token) if handed is not None else None
        if handed is None or machine is None or self._minting is None or self._verifying is None:
            log.warning("a connection was refused: it does not come from the gate")
            writer.write(REFUSED)
            writer.close()
            return
        writer.write(ACCEPTED)
        token = handed.token
        await Intercepted(
            reader,
            writer,
            self._options,
            handed=handed,
            machine=machine,
            minting=self._minting,
            verifying=self._verifying,
            hooks=self._hooks,
            tell=lambda passage: self._tell(token, passage),
            resting=self._resting,
        ).handle_client()

    # -- records

    def _tell(self, token: str, passage: Passage) -> None:
        if len(self._passages) >= _KEPT or self._waiting[token] >= _SHARE:
            self._lost += 1
            return
        self._waiting[token] += 1
        self._passages.append((token, passage))
        self._more.set()

    async def _tell_for_ever(self, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                await self._more.wait()
                self._more.clear()
                while self._passages:
                    token, passage = self._passages.popleft()
                    self._waiting[token] -= 1
                    if not self._waiting[token]:
                        del self._waiting[token]
                    lost, self._lost = self._lost, 0
                    writer.write(wire.record({"token": token, "passage": asdict(passage), "lost": lost}))
                    await writer.drain()


def _file_of(text: str) -> str:
    """A file that only this process can open, as OpenSSL wants one."""
    handle = os.memfd_create("authorities")
    with open(handle, "w", closefd=False) as file:
        file.write(text)
    return f"/proc/self/fd/{handle}"
