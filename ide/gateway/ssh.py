"""SSH: who may log in, and to which sandbox; what runs there is in session.py, what is forwarded in forward.py.

There is no SSH server in the guest: connections end here, and go on as streams to its agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import asyncssh
import structlog
from django.db import DatabaseError

from ide.gateway.channel import PACKET, WINDOW, TcpPipe, UnixPipe
from ide.gateway.directory import Directory
from ide.gateway.forward import ForwardedAgent, GuestListener, dialled, tcp_back, unix_back
from ide.gateway.reach import guest
from ide.gateway.session import Session
from ide.gateway.tasks import first_of
from sandboxes import background
from sandboxes.database import in_thread
from sandboxes.ids import SANDBOX_ID
from sandboxes.models import Exposure, ExposureKind, Sandbox
from sandboxes.permissions import SYSTEM
from sandboxes.services.activity import activity
from sandboxes.services.ssh_keys import LoggedIn, ssh_login, ssh_login_allowed, ssh_login_record
from sandboxes.services.streams import GuestCall

log = structlog.get_logger("atoll.gateway")

LOGIN_SECONDS = 30
RECHECK_SECONDS = 5.0
"""After which somebody whose key or membership has gone is out at the latest."""
KEEPALIVE_SECONDS = 30
MOST = 1024
"""Connections at a time, those that have not logged in included."""
# Faster than what OpenSSH's client would take first, and all that is younger than ten years has them
CIPHERS = ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes256-ctr"]


class Login(asyncssh.SSHServer):
    """One client's connection.

    Its user name is that of an exposure, which needs nothing else; or a sandbox's id, which needs a key of somebody
    who may use it.
    """

    def __init__(self, door: SshDoor) -> None:
        self._door = door
        self._connection: asyncssh.SSHServerConnection | None = None
        self._exposure: Exposure | None = None
        self._person: LoggedIn | None = None
        self._agent: ForwardedAgent | None = None

    # -- asyncssh's side

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        """Somebody has connected."""
        self._connection = conn
        if not self._door.enter(self):
            conn.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """He is gone."""
        self._door.leave(self)

    async def begin_auth(self, username: str) -> bool:
        """Whether more than the user name is needed."""
        try:
            self._exposure = await self._door.directory.find(ExposureKind.SSH, username)
        except DatabaseError as error:
            log.warning("an exposure could not be looked up", error=str(error))
        return self._exposure is None

    def public_key_auth_supported(self) -> bool:
        """For people."""
        return True

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Whether it is a key of somebody who may use that sandbox."""
        return await self._known(username, key, authority=False)

    async def validate_ca_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Whether certificates that it signed stand for somebody who may use that sandbox."""
        return await self._known(username, key, authority=True)

    async def _known(self, username: str, key: asyncssh.SSHKey, *, authority: bool) -> bool:
        # The last key that was asked about is the one whose signature lets him in, so it says who he is
        self._person = None
        if SANDBOX_ID.fullmatch(username) is None:
            return False
        line = key.export_public_key().decode()
        try:
            self._person = await in_thread(ssh_login, public_id=username, public_key=line, authority=authority)
        except DatabaseError as error:
            log.warning("a key could not be looked up", error=str(error))
        return self._person is not None

    def auth_completed(self) -> None:
        """He is in, for as long as he may."""
        if self._connection is not None:
            self._agent = ForwardedAgent(self, self._connection)
            background.spawn(self._stay(self._connection, self._agent), name="ssh login")

    async def _stay(self, connection: asyncssh.SSHServerConnection, agent: ForwardedAgent) -> None:
        try:
            if self._exposure is not None:
                with self._door.directory.inside(self._exposure):
                    await connection.wait_closed()
            elif self._person is not None:
                await in_thread(ssh_login_record, login=self._person)
                await first_of(connection.wait_closed(), self._until_forbidden(self._person))
        except asyncio.CancelledError:
            pass  # its exposure has closed
        finally:
            connection.disconnect(asyncssh.DISC_BY_APPLICATION, "access has ended")
            await agent.close()

    async def _until_forbidden(self, person: LoggedIn) -> None:
        while True:
            await asyncio.sleep(RECHECK_SECONDS)
            try:
                if not await in_thread(ssh_login_allowed, login=person):
                    return
            except DatabaseError as error:
                # A database that is away for a moment ends nobody's shell
                log.warning("access by SSH could not be checked", error=str(error))

    def session_requested(self) -> Session:
        """A shell, a command or SFTP."""
        return Session(self)

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        """A connection to a port in the guest, or to where the guest may go."""
        return dialled(self, {"host": dest_host, "port": dest_port}, TcpPipe())

    def unix_connection_requested(self, dest_path: str) -> Any:
        """A connection to a unix socket in the guest."""
        return dialled(self, {"path": dest_path}, UnixPipe())

    async def server_requested(self, listen_host: str, listen_port: int) -> Any:
        """A port of the guest whose connections go to the client."""
        if self._connection is None:
            return False
        # Nothing and "*" are every address, as SSH has it
        target = {"host": listen_host or "*", "port": listen_port}
        listener: GuestListener | None = None

        def port() -> int:
            return listen_port or (listener.get_port() if listener is not None else 0)

        listener = await GuestListener.open(self, target, tcp_back(self._connection, listen_host, port))
        return listener or False

    async def unix_server_requested(self, listen_path: str) -> Any:
        """A unix socket of the guest whose connections go to the client."""
        if self._connection is None:
            return False
        return await GuestListener.open(self, {"path": listen_path}, unix_back(self._connection, listen_path)) or False

    # -- what sessions need

    async def call(self, method: str, params: Mapping[str, Any] | None = None, *, more: bool = False) -> GuestCall:
        """See session.Guest."""
        actor = SYSTEM if self._person is None else self._person.actor
        why = "by SSH" if self._person is not None else "somebody logged in by SSH"
        return await guest(sandbox=self._sandbox(), method=method, params=params, more=more, actor=actor, why=why)

    async def ask(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        """See session.Guest."""
        async with await self.call(method, params) as call:
            return await call.reply()

    async def agent_socket(self) -> str:
        """See session.Guest."""
        return "" if self._agent is None else await self._agent.path()

    def used(self) -> None:
        """See session.Guest."""
        activity.note(self._sandbox())

    def _sandbox(self) -> Sandbox:
        if self._exposure is not None:
            return self._exposure.sandbox
        if self._person is not None:
            return self._person.sandbox
        raise RuntimeError("not logged in")


class SshDoor:
    """Listens for SSH."""

    def __init__(self, directory: Directory, host_key: Path) -> None:
        self.directory = directory
        self._host_key = host_key
        self._inside: set[Login] = set()

    async def open(self, stack: contextlib.AsyncExitStack, listening: socket.socket) -> None:
        """Serve on this socket until the stack is closed."""
        # Its records of level INFO have user names, and those are credentials here
        asyncssh.set_log_level(logging.WARNING)
        acceptor = await asyncssh.listen(
            sock=listening,
            server_factory=lambda: Login(self),
            server_host_keys=[str(self._host_key)],
            server_version="Atoll",
            encoding=None,
            line_editor=False,
            x11_forwarding=False,
            gss_host=None,
            compression_algs=None,
            encryption_algs=CIPHERS,
            login_timeout=LOGIN_SECONDS,
            keepalive_interval=KEEPALIVE_SECONDS,
            window=WINDOW,
            max_pktsize=PACKET,
        )
        stack.callback(acceptor.close)

    def enter(self, login: Login) -> bool:
        """Whether there is room for one more."""
        self._inside.add(login)
        return len(self._inside) <= MOST

    def leave(self, login: Login) -> None:
        """One has gone. Repeatable."""
        self._inside.discard(login)
