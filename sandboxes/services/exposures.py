"""Ways into a sandbox: reserved, bound to a port or a process, closed; and the gateways that serve them.

Whether one is open is a matter of its row alone, so a gateway that was away knows as much as one that was there.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlsplit
from uuid import UUID

from django.contrib.auth.hashers import make_password
from django.db import IntegrityError, transaction
from django.utils import timezone

from sandboxes import audit, ids, permissions
from sandboxes.config import config
from sandboxes.errors import Conflict, Forbidden, Invalid, NotFound, QuotaExceeded, Unavailable
from sandboxes.models import Access, Exposure, ExposureKind, GatewayProcess, Sandbox
from sandboxes.permissions import SYSTEM, Actor, AnyActor
from sandboxes.services.accounts import digest
from sandboxes.states import ENDED

MOST = 64
"""Open exposures of one sandbox."""
SHORTEST = 8
"""Characters of a password."""
LONGEST_HOURS = 31 * 24
"""For which a link is good at most."""
SILENCE = timedelta(seconds=20)
"""After which a gateway that has not been seen is taken for gone."""
HTTPS = 443


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a gateway listens; `ports` are for one exposure each, the others None where it does not."""

    ports: tuple[int, ...] = ()
    domain_port: int | None = None
    ssh_port: int | None = None


# -- gateways ----------------------------------------------------------------------------------------------------------


def gateway_seen(*, process: UUID, listening: Listening) -> None:
    """It lives and listens there. Repeatable; comes back even if it was taken for gone."""
    GatewayProcess.objects.filter(seen_at__lt=timezone.now() - timedelta(days=1)).delete()
    GatewayProcess.objects.update_or_create(
        pk=process,
        defaults={
            "seen_at": timezone.now(),
            "ports": list(listening.ports),
            "domain_port": listening.domain_port,
            "ssh_port": listening.ssh_port,
        },
    )


def gateway_gone(*, process: UUID) -> None:
    """It has ended in order. Repeatable."""
    GatewayProcess.objects.filter(pk=process).delete()


def _gateways() -> list[GatewayProcess]:
    found = list(GatewayProcess.objects.filter(seen_at__gt=timezone.now() - SILENCE).order_by("-started_at"))
    if not found:
        raise Unavailable("the gateway does not run, which exposed ports and SSH need")
    return found


def ssh_address_required() -> tuple[str, int]:
    """The same; Unavailable while no gateway listens."""
    if (address := ssh_address()) is None:
        raise Unavailable("no gateway listens for SSH")
    return address


def ssh_address() -> tuple[str, int] | None:
    """Host and port for SSH; None while no gateway listens."""
    try:
        ports = [gateway.ssh_port for gateway in _gateways() if gateway.ssh_port is not None]
    except Unavailable:
        return None
    return (config()["ssh_host"], ports[0]) if ports else None


# -- exposures ---------------------------------------------------------------------------------------------------------


def exposure_reserve(*, sandbox: Sandbox, actor: Actor, kind: ExposureKind = ExposureKind.HTTP) -> Exposure:
    """A new public address for an SDK, which leads nowhere until it is bound; one of kind SSH is a login at once.

    It ends with the sandbox. Conflict for a sandbox that has ended, Forbidden where nothing may be public,
    QuotaExceeded, Unavailable without a gateway.
    """
    permissions.require(actor, "exposure.edit", sandbox.organization_id)
    _require_public()
    return _insert(sandbox, actor, kind=kind, access=Access.PUBLIC, sdk=True)


def exposure_bind(
    *, sandbox: Sandbox, actor: Actor, domain: str, port: int | None = None, pid: int | None = None
) -> Exposure:
    """Have a reserved address lead to a port, or to what a process listens on. Repeatable.

    NotFound for an address that is not reserved for this sandbox, Invalid unless it is exactly one of the two.
    """
    permissions.require(actor, "exposure.edit", sandbox.organization_id)
    if (port is None) == (pid is None):
        raise Invalid("exactly one of port and pid is needed", field="port")
    check_port(port)
    if pid is not None and not 0 < pid < 2**31:
        raise Invalid("pid is not one of a process", field="pid")
    with transaction.atomic():
        exposure = Exposure.objects.filter(
            sandbox=sandbox, kind=ExposureKind.HTTP, domain=domain, closed_at=None, sdk=True
        ).first()
        if exposure is None:
            raise NotFound("this address is not reserved for this sandbox")
        exposure.port, exposure.pid = port, pid
        exposure.save(update_fields=["port", "pid"])
        _tell(exposure, actor, "exposure.bind", port=port, pid=pid)
    return exposure


def exposure_create(
    *, sandbox: Sandbox, actor: Actor, port: int, access: Access, password: str = "", hours: int = 24
) -> tuple[Exposure, str]:
    """Expose a port to those whom `access` names; with LINK the token that its address carries, else an empty text.

    A LINK closes after `hours`; PASSWORD needs one of 8 characters and more. It stays for a workspace that is stopped,
    and is there when it runs again. Invalid, Conflict, QuotaExceeded, Unavailable; Forbidden for PUBLIC where nothing
    may be public.
    """
    permissions.require(actor, "exposure.edit", sandbox.organization_id)
    check_port(port)
    if access == Access.PUBLIC:
        _require_public()
    if access == Access.PASSWORD and not SHORTEST <= len(password) <= 1000:
        raise Invalid(f"a password has {SHORTEST} to 1000 characters", field="password")
    if not 1 <= hours <= LONGEST_HOURS:
        raise Invalid(f"a link is good for 1 to {LONGEST_HOURS} hours", field="hours")
    token = secrets.token_urlsafe(32) if access == Access.LINK else ""
    made = _insert(
        sandbox,
        actor,
        kind=ExposureKind.HTTP,
        access=access,
        sdk=False,
        port=port,
        secret_hash=make_password(password) if access == Access.PASSWORD else digest(token) if token else "",
        expires_at=timezone.now() + timedelta(hours=hours) if access == Access.LINK else None,
    )
    return made, token


def exposure_link(*, exposure: Exposure, token: str) -> str:
    """The address that lets in whoever has it; empty without a token."""
    return f"https://{exposure.domain}/.atoll/enter?token={token}" if token else ""


def _require_public() -> None:
    if not config()["expose_public"]:
        raise Forbidden("nothing may be exposed to everybody on this installation (ATOLL_EXPOSE_PUBLIC)")


def exposure_close(*, exposure: Exposure, actor: AnyActor) -> None:
    """Nobody comes in any more; connections that are open are ended within seconds. Repeatable."""
    permissions.require(actor, "exposure.edit", exposure.organization_id)
    with transaction.atomic():
        if Exposure.objects.filter(pk=exposure.pk, closed_at=None).update(closed_at=timezone.now()):
            exposure.refresh_from_db()
            _tell(exposure, actor, "exposure.close")


def exposures_end(*, sandbox: Sandbox, all_of_them: bool) -> None:
    """Close what an SDK has exposed of a sandbox that ends, and people's as well; in the caller's transaction."""
    for exposure in Exposure.objects.filter(sandbox=sandbox, closed_at=None):
        if exposure.sdk or all_of_them:
            exposure_close(exposure=exposure, actor=SYSTEM)


def check_port(port: int | None) -> None:
    """Invalid for a number that is no port."""
    if port is not None and not 0 < port < 65_536:
        raise Invalid("a port is 1 to 65535", field="port")


def _insert(
    sandbox: Sandbox,
    actor: Actor,
    *,
    kind: ExposureKind,
    access: Access,
    sdk: bool,
    port: int | None = None,
    secret_hash: str = "",
    expires_at: datetime | None = None,
) -> Exposure:
    for over in Exposure.objects.filter(expires_at__lte=timezone.now(), closed_at=None):
        exposure_close(exposure=over, actor=SYSTEM)  # its port is free
    for _ in range(5):
        name = ids.exposure_name()
        domain, gateway_port = _address(name, kind)
        try:
            with transaction.atomic():
                sandbox.refresh_from_db()
                if sandbox.state in ENDED:
                    raise Conflict(f"it is {sandbox.state}: nothing of it can be exposed", state=sandbox.state)
                if Exposure.objects.filter(sandbox=sandbox, closed_at=None).count() >= MOST:
                    raise QuotaExceeded(f"{MOST} ports of this sandbox are exposed already: close some first")
                exposure = Exposure.objects.create(
                    public_id=ids.exposure_id(),
                    organization_id=sandbox.organization_id,
                    sandbox=sandbox,
                    kind=kind,
                    name=name,
                    domain=domain,
                    gateway_port=gateway_port,
                    port=port,
                    access=access,
                    sdk=sdk,
                    secret_hash=secret_hash,
                    expires_at=expires_at,
                    creator_id=actor.user_id,
                    creator_name=actor.label[:150],
                )
                _tell(exposure, actor, "exposure.create", port=port, access=access, kind=kind)
                return exposure
        except IntegrityError:
            continue  # somebody else took the port at this moment
    raise Unavailable("no address could be had: try again")


def _address(name: str, kind: ExposureKind) -> tuple[str, int | None]:
    """What clients connect to, and the port that is taken for it. Unavailable, QuotaExceeded."""
    gateways = _gateways()
    if kind == ExposureKind.SSH:
        if (address := ssh_address()) is None:
            raise Unavailable("the gateway does not listen for SSH")
        return f"{address[0]}:{address[1]}", None
    if domain := config()["expose_domain"]:
        ports = [gateway.domain_port for gateway in gateways if gateway.domain_port is not None]
        if not ports:
            raise Unavailable(f"the gateway does not listen for names below {domain}")
        return f"{name}.{domain}" + ("" if ports[0] == HTTPS else f":{ports[0]}"), None
    taken = set(Exposure.objects.filter(closed_at=None).values_list("gateway_port", flat=True))
    free = [port for port in gateways[0].ports if port not in taken]
    if not free:
        raise QuotaExceeded("all ports for exposures are taken: close some, or see ATOLL_EXPOSE_PORTS")
    port = secrets.choice(free)
    host = urlsplit(config()["origin"]).hostname or "127.0.0.1"
    return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}"), port


def _tell(exposure: Exposure, actor: AnyActor, action: str, **detail: object) -> None:
    """Audit and event. The address is not among them: whoever reads audit entries should not get in by them."""
    public_id = exposure.sandbox.public_id
    audit.record(
        actor=actor,
        organization_id=exposure.organization_id,
        action=action,
        target=public_id,
        exposure=exposure.public_id,
        **detail,
    )
    audit.publish(organization_id=exposure.organization_id, kind="exposure", payload={"id": public_id})
