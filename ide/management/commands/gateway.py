"""`manage.py gateway`: lets visitors into what sandboxes expose."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ide.env import env
from ide.gateway.server import CannotListen, GatewayConfig, gateway
from vm.host.confine import set_capabilities, undumpable


class Command(BaseCommand):
    """Wires the gateway from the settings."""

    help = "Serve exposed ports of sandboxes over HTTPS, and logins over SSH."
    requires_system_checks: list[str] = []  # web makes them: they import all that answers requests
    requires_migrations_checks = True

    def handle(self, *args: Any, **options: Any) -> None:
        """Serve until SIGTERM or SIGINT."""
        undumpable()
        config = GatewayConfig(
            bind=env().gateway_bind,
            certificate=env().gateway_certificate,
            key=env().gateway_key,
            ports=env().gateway_ports,
            domain=env().expose_domain,
            domain_port=env().expose_port,
            ssh_ports=env().ssh_ports,
            ssh_host_key=env().ssh_host_key,
        )
        try:
            asyncio.run(_serve(config))
        except CannotListen as error:
            raise CommandError(str(error)) from error


async def _serve(config: GatewayConfig) -> None:
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    async with gateway(config):
        # All ports are bound: nothing is left of what root may
        set_capabilities(0)
        # Tell the supervisor, for as long as this process lives
        lock = os.open(env().gateway_lock, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        await asked.wait()
