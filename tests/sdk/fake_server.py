"""A web process on a node in memory, for the suite: fake_server.py PORT prints one line of JSON when it is ready.

Everything but the machine is what production runs; the turns of the worker are made on the loop of the web process,
because a node in memory has no second process.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from typing import Any


def main(port: int) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ide.settings.base")
    os.environ["ATOLL_PORT"] = str(port)
    from pathlib import Path

    data = Path(os.environ["ATOLL_DATA"])
    for folder in ("db", "keys"):
        (data / folder).mkdir(parents=True, exist_ok=True)
    # As vm/host/provision.py makes it for an installation
    (data / "keys" / "secrets.key").write_text(secrets.token_urlsafe(48))
    _certificate()
    from django.core.management import call_command

    from ide.asgi import application
    from ide.env import env
    from ide.gateway.server import GatewayConfig, gateway
    from ide.server import serve

    call_command("migrate", verbosity=0)
    from sandboxes import reconcile, runtime
    from sandboxes.database import in_thread
    from sandboxes.models import Sandbox
    from sandboxes.services.egress_journal import egress_collect
    from sandboxes.services.spending import spending_enforce
    from sandboxes.services.usage import usage_collect
    from tests.sdk.accounts import prepare
    from vm.api import MachineInfo, MachineSpec
    from vm.background import spawn
    from vm.egress.journal import passage_from_json
    from vm.fake import FakeNode

    passages = Path(os.environ["ATOLL_DATA"], "passages.jsonl")
    told = 0

    def hear() -> None:
        """What a test wrote of a sandbox's connections: its id, and the passage."""
        nonlocal told
        lines = passages.read_text().splitlines() if passages.exists() else []
        for line in lines[told:]:
            data = json.loads(line)
            row = Sandbox.objects.get(public_id=data["sandbox"])
            node.passed(row.machine, passage_from_json(data["passage"]))
        told = len(lines)

    class NoGuest(FakeNode):
        """Its guests never come, which it says once a handshake has been answered without them."""

        async def machine_start(self, spec: MachineSpec, **more: Any) -> MachineInfo:
            info = await super().machine_start(spec, **more)
            why = "the guest did not answer in time"
            asyncio.get_running_loop().call_later(7, lambda: self.fail_boot(spec.machine, detail=why))
            return info

    kind = NoGuest if os.environ.get("ATOLL_TEST_NO_GUEST") else FakeNode
    node = kind(boot_delay=float(os.environ.get("ATOLL_TEST_BOOT_DELAY", "0.2")))
    runtime.use(lambda: node)
    started = False
    listening = asyncio.Event()

    async def turns() -> None:
        while True:
            await asyncio.sleep(1)
            await reconcile.expire()
            await reconcile.reconcile()
            await usage_collect()
            await spending_enforce()
            await in_thread(hear)
            await egress_collect()

    async def visitors() -> None:
        """What `manage.py gateway` does, which needs this process's node."""
        config = GatewayConfig(
            bind="127.0.0.1",
            certificate=env().gateway_certificate,
            key=env().gateway_key,
            ports=env().gateway_ports,
            domain=env().expose_domain,
            domain_port=env().expose_port,
            ssh_ports=env().ssh_ports,
            ssh_host_key=env().ssh_host_key,
        )
        async with gateway(config):
            listening.set()
            await asyncio.Event().wait()

    async def with_turns(scope: dict[str, Any], receive: Any, send: Any) -> None:
        nonlocal started
        if not started:
            started = True
            spawn(turns(), name="turns")
            spawn(visitors(), name="gateway")
            await listening.wait()
        await application(scope, receive, send)

    print(json.dumps(prepare()), flush=True)
    try:
        serve(with_turns, bind="127.0.0.1", port=port)
    finally:
        node.close()


def _certificate() -> None:
    """Certificate and host key, as vm/host/provision.py and ide/installation.py have them made."""
    from ide.env import env
    from vm.host.authority import authority_make, certificate_issue
    from vm.host.provision import ssh_host_key_make

    ssh_host_key_make(env().ssh_host_key, (os.getuid(), os.getgid()))
    key = env().authority.with_suffix(".key")
    authority_make(certificate=env().authority, key=key)
    certificate_issue(
        authority=env().authority,
        authority_key=key,
        names=env().gateway_names,
        certificate=env().gateway_certificate,
        key=env().gateway_key,
        owner=(os.getuid(), os.getgid()),
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
