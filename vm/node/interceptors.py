"""The interceptor processes of a node: started, told what they must know, listened to, and started again when they die.

They run mitmproxy in an environment of its own, as a user of their own. What they know lies in this process's memory
and theirs, and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vm.api import EgressPolicy, Secret
from vm.background import spawn
from vm.egress.journal import Passage, passage_from_json
from vm.node import wire
from vm.node.config import NodeConfig
from vm.storage.layout import Layout

log = logging.getLogger("atoll.node")

CHECKOUT = Path(__file__).resolve().parents[2]
SYSTEM_STORE = Path("/etc/ssl/certs/ca-certificates.crt")
BACKOFF = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
QUIET_AFTER = 60.0  # seconds of life after which an earlier death no longer counts
_STARTING = 30.0
_OBEYING = 5.0  # seconds in which an order must hold; who is slower may go by old ones, and is ended
_WAITING = 5.0  # seconds that a connection waits for one that is being started


@dataclass(slots=True, eq=False)
class _Interceptor:
    """One process that lives; `ready` once it takes connections."""

    process: asyncio.subprocess.Process
    writer: asyncio.StreamWriter
    port: int = 0
    ready: bool = False
    ordered: int = 0
    done: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def order(self, what: dict[str, Any]) -> None:
        self.ordered += 1
        if not self.writer.transport.is_closing():
            self.writer.write(wire.record({**what, "number": self.ordered}))


class Interceptors:
    """All of a node. `heard` gets each passage with the token of its machine."""

    def __init__(self, config: NodeConfig, layout: Layout, heard: Callable[[str, Passage], None]) -> None:
        self._config = config
        self._layout = layout
        self._heard = heard
        self._machines: dict[str, dict[str, Any]] = {}
        self._processes: list[_Interceptor] = []
        self._keepers: list[asyncio.Task[None]] = []
        self._born = asyncio.Event()
        self._turn = 0

    @property
    def alive(self) -> int:
        """How many can take connections now."""
        return len(self._ready())

    def _ready(self) -> list[_Interceptor]:
        return [one for one in self._processes if one.ready]

    def start(self) -> None:
        """Begin to keep them running."""
        self._keepers = [
            spawn(self._keep(number), name=f"interceptor {number}") for number in range(self._config.interceptors)
        ]

    async def close(self) -> None:
        """End them."""
        for keeper in self._keepers:
            keeper.cancel()
        if self._keepers:
            await asyncio.wait(self._keepers)
        self._keepers = []

    # -- what they know

    def know(self, token: str, policy: EgressPolicy, secrets: Sequence[Secret]) -> None:
        """Let connections with that token be treated so; it holds when `told` returns."""
        self._machines[token] = {
            "do": "machine",
            "token": token,
            "allow_net": None if policy.allow_net is None else list(policy.allow_net),
            "deny": list(policy.deny),
            "secrets": [asdict(secret) for secret in secrets],
        }
        for one in self._processes:
            one.order(self._machines[token])

    def forget(self, token: str) -> None:
        """Let no connection with that token in any more. Repeatable."""
        if self._machines.pop(token, None) is not None:
            for one in self._processes:
                one.order({"do": "forget", "token": token})

    async def told(self) -> None:
        """Wait until every order so far holds everywhere; one where it does not in time is ended."""
        await asyncio.gather(*(self._obeyed(one, one.ordered) for one in self._ready()))

    async def _obeyed(self, one: _Interceptor, number: int) -> None:
        try:
            async with asyncio.timeout(_OBEYING):
                while one.done < number and one in self._processes:
                    one.changed.clear()
                    await one.changed.wait()
        except TimeoutError:
            log.error("an interceptor did not do what it was told in time, and is started anew")
            self._leave(one)
            with suppress(ProcessLookupError):
                one.process.kill()

    async def port(self) -> int | None:
        """Where one of them takes connections, once it knows all it must; None if none lives, or will soon."""
        if not self._ready() and self._keepers:
            with suppress(TimeoutError):
                async with asyncio.timeout(_WAITING):
                    await self._born.wait()
        await self.told()
        ready = self._ready()
        if not ready:
            return None
        self._turn += 1
        return ready[self._turn % len(ready)].port

    # -- one process

    async def _keep(self, number: int) -> None:
        deaths = 0
        while True:
            began = time.monotonic()
            try:
                why = await self._run()
            except OSError as error:
                why = str(error)
            deaths = 1 if time.monotonic() - began > QUIET_AFTER else deaths + 1
            delay = BACKOFF[min(deaths, len(BACKOFF)) - 1]
            log.error("interceptor %d ended (%s); it is started again in %.0f s", number, why, delay)
            await asyncio.sleep(delay)

    async def _run(self) -> str:
        """Run one until it ends, and say how it did."""
        python = self._config.interceptor_python
        if not python.exists():
            return f'its environment is missing at {python.parents[1]}: "make up" makes it'
        try:
            pwd.getpwnam(self._config.interceptor_user)
        except KeyError:
            return f'there is no user {self._config.interceptor_user}: "make up" makes it'
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "vm.host.confine", self._config.interceptor_user, "--"),
                *(str(python), "-m", "vm.egress.interceptor", str(theirs.fileno())),
                cwd=CHECKOUT,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # Nothing of ours: a variable could have keys of TLS written to a file
                env={"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"},
            )
        reader, writer = await asyncio.open_connection(sock=ours, limit=wire.PIECE)
        one = _Interceptor(process, writer)
        try:
            one.order(await asyncio.to_thread(self._setup))
            for machine in self._machines.values():
                one.order(machine)
            self._processes.append(one)
            listening = spawn(self._listen(one, reader, one.ordered), name="interceptor's records")
            late = asyncio.get_running_loop().call_later(_STARTING, self._require_ready, one)
            try:
                return f"exit code {await process.wait()}"
            finally:
                late.cancel()
                listening.cancel()
        finally:
            self._leave(one)
            writer.close()
            if process.returncode is None:
                process.kill()
                await process.wait()

    def _setup(self) -> dict[str, Any]:
        extra = self._config.egress_ca_file
        stores = [SYSTEM_STORE, *([extra] if extra is not None else [])]
        return {
            "do": "setup",
            "certificate": self._layout.authority.read_text(),
            "key": self._layout.authority_key.read_text(),
            "authorities": "\n".join(store.read_text() for store in stores),
            "hooks": list(self._config.egress_hooks),
            "hooks_path": str(self._config.egress_hooks_path or ""),
            "resting": self._config.interceptor_resting,
        }

    async def _listen(self, one: _Interceptor, reader: asyncio.StreamReader, known: int) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, ValueError):
            while True:
                said = await wire.read_record(reader)
                if "done" in said:
                    one.done, one.port = int(said["done"]), int(said["port"])
                    one.changed.set()
                    if not one.ready and one.done >= known and one in self._processes:
                        one.ready = True
                        self._born.set()
                        log.info("an interceptor takes connections")
                    continue
                if said["lost"]:
                    log.warning("%d records of requests were lost: there were too many", said["lost"])
                self._heard(str(said["token"]), passage_from_json(said["passage"]))

    def _leave(self, one: _Interceptor) -> None:
        if one in self._processes:
            self._processes.remove(one)
        if not self._ready():
            self._born.clear()
        one.changed.set()

    def _require_ready(self, one: _Interceptor) -> None:
        if not one.ready and one.process.returncode is None:
            log.error("an interceptor did not begin in time")
            one.process.kill()
