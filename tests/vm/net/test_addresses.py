"""Which addresses are this host's, also where the kernel lets anybody bind any."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest

from vm.net import addresses


@pytest.mark.parametrize("anything", [False, True])
async def test_this_host_s_addresses_are_known(monkeypatch: pytest.MonkeyPatch, anything: bool) -> None:
    """Those that it has and no others; asked within an event loop, as the gate asks."""
    assert asyncio.get_running_loop().is_running()
    monkeypatch.setattr(addresses, "_may_bind_anything", lambda version: anything)
    own = addresses.own_addresses()
    assert all(addresses.is_own(ip_address(address)) for address in [*own, "127.0.0.1"])
    assert not any(address.startswith("127.") for address in own)
    own6 = addresses.own_addresses6()
    assert "::1" not in own6
    assert all(addresses.is_own(ip_address(one)) for one in own6 if anything or not ip_address(one).is_link_local)
    for foreign in ("192.0.2.213", "2001:db8::77"):
        assert not addresses.is_own(ip_address(foreign))
