"""`manage.py node`: runs the machines of this host; the only process that needs root."""

from __future__ import annotations

import asyncio
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ide.env import env
from sandboxes import quotas
from vm.host.provision import Users
from vm.image.hashes import image_path
from vm.node.config import NodeConfig
from vm.node.server import CannotServe, serve


class Command(BaseCommand):
    """Wires a node from the settings; it never touches the database."""

    help = "Run this host's machines: libvirt, disks, namespaces, and the channels to the guests."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        """Serve until SIGTERM or SIGINT; machines run on."""
        users = Users()
        image = image_path(env().image_cache)
        config = NodeConfig(
            data=env().data,
            image_cache=env().image_cache,
            key_file=env().node_key,
            service_user=users.service,
            machine_user=users.machine,
            libvirt_uri=env().libvirt_uri,
            # this checkout's own, which need not be the one built last
            image=image.name if image is not None else "",
            clones=env().clones,
            low_memory_mib=env().low_memory_mib,
            warm=(quotas.DEFAULT_MEMORY_MB, quotas.VCPUS, quotas.DISK_GIB),
            pool_floor=env().pool_floor,
            pool_ceiling=env().pool_ceiling,
            pool_memory_mib=env().pool_memory_mib,
            egress_internal_allow=env().egress_internal_allow,
            egress_dns=env().egress_dns,
            egress_ask_seconds=env().egress_ask_seconds,
            egress_connections=env().egress_connections,
            egress_ca_file=env().egress_ca_file,
            egress_hooks=env().egress_hooks,
            egress_hooks_path=env().egress_hooks_path,
            trust_host_store=env().egress_trust_host_store,
            interceptors=env().egress_interceptors,
            interceptor_user=users.proxy,
        )
        try:
            asyncio.run(serve(config))
        except CannotServe as error:
            raise CommandError(str(error)) from error
