"""The row of a new sandbox: what may be asked for, whether there is room, and what it begins with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from sandboxes import audit, egress, events, ids, permissions, quotas, timeline
from sandboxes.config import config
from sandboxes.errors import Invalid
from sandboxes.models import Kind, Organization, Sandbox
from sandboxes.permissions import Actor
from sandboxes.quotas import Amount
from sandboxes.secret_rules import WantedSecret
from sandboxes.services import host_data, limits, mounts, secrets
from sandboxes.services.mounts import WantedMount


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody wants a new sandbox to be. `held_by`: it ends with that connection.

    `stop_at` None: a workspace has no deadline then, a sandbox that is no session the latest its organization allows,
    and none where `unlimited` is asked for and allowed. `allow_net` None: what new sandboxes of its organization reach.
    `root`: the volume or snapshot to boot from, by id or slug; "" for the image. One with memory has its own size.
    """

    kind: Kind = Kind.SANDBOX
    name: str = ""
    memory_mb: int = quotas.DEFAULT_MEMORY_MB
    labels: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    allow_net: Sequence[str] | None = None
    secrets: Sequence[WantedSecret] = ()
    deny_net: Sequence[str] = ()
    ask_net: bool = False
    stop_at: datetime | None = None
    unlimited: bool = False
    session: bool = False
    held_by: UUID | None = None
    volumes: Sequence[WantedMount] = ()
    root: str = ""


def sandbox_create(*, wanted: Wanted, actor: Actor) -> Sandbox:
    """A queued row; `sandbox_boot` is the next step.

    Forbidden; Invalid for values out of bounds; QuotaExceeded at the organization's limit; SecretsLocked; NotFound and
    VolumeInUse for its volumes.
    """
    permissions.require(actor, "sandbox.create", actor.organization_id)
    quotas.check_memory(wanted.memory_mb)
    quotas.check_name(wanted.name)
    quotas.check_labels(wanted.labels)
    quotas.check_env(wanted.env)
    egress.check_patterns(wanted.allow_net, field="allow_net")
    egress.check_patterns(wanted.deny_net, field="deny_net")
    now = timezone.now()
    if wanted.stop_at is not None and wanted.stop_at <= now:
        raise Invalid("the time at which it is to stop lies in the past", field="stop_at_ms")
    with transaction.atomic():
        if wanted.root:
            Organization.objects.select_for_update(no_key=True).get(pk=actor.organization_id)
        root = mounts.root_of(name=wanted.root, actor=actor)
        # What goes on from a memory has as much of it
        memory_mb = (root.memory_mb if root else 0) or wanted.memory_mb
        asked = Amount(sandboxes=1, vcpus=quotas.VCPUS, memory_mib=memory_mb, disk_gib=quotas.DISK_GIB)
        organization = require_room(actor.organization_id, asked, new=True)
        sandbox = sandbox_insert(
            actor=actor,
            kind=wanted.kind,
            name=wanted.name,
            memory_mb=memory_mb,
            vcpus=quotas.VCPUS,
            disk_gib=quotas.DISK_GIB,
            labels=dict(wanted.labels),
            env=dict(wanted.env),
            allow_net=organization.allow_net if wanted.allow_net is None else list(wanted.allow_net),
            deny_net=list(wanted.deny_net),
            ask_net=wanted.ask_net,
            session=wanted.session,
            held_by_id=wanted.held_by,
            stop_at=_deadline(wanted, organization, now),
            root=root,
            boots_from=root.public_id if root else "",
        )
        secrets.secrets_insert(sandbox=sandbox, wanted=wanted.secrets, actor=actor)
        mounts.mounts_insert(sandbox=sandbox, wanted=wanted.volumes, actor=actor)
    return sandbox


def _deadline(wanted: Wanted, organization: Organization, now: datetime) -> datetime | None:
    longest = limits.max_lifetime(organization)
    if wanted.unlimited and longest is not None:
        raise Invalid("this organization does not allow sandboxes without a deadline", field="timeout")
    if longest is None or wanted.session or (wanted.stop_at is None and wanted.kind == Kind.WORKSPACE):
        return wanted.stop_at
    return min(wanted.stop_at or now + longest, now + longest)


def sandbox_insert(*, actor: Actor, action: str = "sandbox.create", **fields: Any) -> Sandbox:
    """A queued row with its audit, timeline and event; in the caller's transaction, who has checked everything."""
    region: str = config()["region"]
    sandbox = Sandbox.objects.create(
        public_id=ids.sandbox_id(region),
        organization_id=actor.organization_id,
        region=region,
        machine=ids.machine_id(),
        creator_id=actor.user_id,
        creator_name=actor.label[:150],
        state_since=timezone.now(),
        **fields,
    )
    audit.record(
        actor=actor,
        organization_id=actor.organization_id,
        action=action,
        target=sandbox.public_id,
        kind=sandbox.kind,
        memory_mb=sandbox.memory_mb,
    )
    events.publish_sandbox(sandbox)
    timeline.record_created(sandbox=sandbox)
    return sandbox


def require_room(organization_id: int, asked: Amount, *, new: bool = False) -> Organization:
    """The organization, locked, with room for what is asked for; `new`: beside what exists. QuotaExceeded.

    Unavailable where the host has another data directory. To be called in the transaction that takes the place.
    """
    host_data.host_data_require()
    # Keeps two creates on PostgreSQL from both seeing the last place; SQLite's transaction is immediate anyway.
    organization = Organization.objects.select_for_update(no_key=True).get(pk=organization_id)
    limits.room_require(organization=organization, asked=asked, new=new)
    return organization
