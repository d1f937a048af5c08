"""Secrets: made, given other values, revoked, and opened for the node; the only module that writes or opens them.

Every change takes the organization's row first. Whoever changes the sealing key does so as well, so that a value which
was sealed with the old key is seen by him, and one that is sealed later has the new key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import F
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from sandboxes import audit, crypto, ids, permissions, secret_rules, states, timeline
from sandboxes.errors import Conflict, Invalid, NotFound, SecretsLocked
from sandboxes.models import Organization, Sandbox, SandboxState, Secret, SecretDelivery, SecretPlaceholder
from sandboxes.permissions import Actor
from sandboxes.secret_rules import WantedSecret
from sandboxes.selectors.secrets import effective, meant_for
from sandboxes.services.app_variables import variables_reseal
from vm import api

BATCH = 100
"""Rows that are sealed anew in one transaction."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a machine is to be told: its secrets, opened, as of the change `version` (SecretDelivery.wanted)."""

    version: int
    secrets: tuple[api.Secret, ...]
    rows: tuple[tuple[int, int], ...] = ()
    """Key and version of each row that is in it."""

    @property
    def env(self) -> dict[str, str]:
        """What the guest has in its environment."""
        return {secret.name: secret.placeholder for secret in self.secrets}


@sensitive_variables()
def secret_create(*, wanted: WantedSecret, actor: Actor, sandbox: Sandbox | None = None) -> Secret:
    """A new secret of the sandbox, or without one of the organization. Tell the machines then: services/delivery.py.

    Forbidden; Invalid; Conflict for a name that there is already, or a sandbox that has ended; QuotaExceeded;
    SecretsLocked.
    """
    permissions.require(actor, _action(sandbox), sandbox.organization_id if sandbox else actor.organization_id)
    secret_rules.check_secret(wanted)
    with transaction.atomic():
        _lock(actor.organization_id)
        if sandbox is not None:
            sandbox.refresh_from_db()
            if sandbox.state in states.ENDED and not states.can_start_again(sandbox.kind):
                raise Conflict(f"the sandbox is {sandbox.state}: nothing in it can use a secret", state=sandbox.state)
        [secret] = _insert(actor=actor, sandbox=sandbox, wanted=[wanted])
        _announce(secret, actor=actor, said="was added: new processes have it in their environment", env=True)
    return secret


@sensitive_variables()
def secrets_insert(*, sandbox: Sandbox, wanted: Sequence[WantedSecret], actor: Actor) -> None:
    """The secrets that a sandbox is created with, in the transaction of its creation, which has the organization's row.

    Invalid, QuotaExceeded, SecretsLocked.
    """
    names = [one.name for one in wanted]
    for one in wanted:
        secret_rules.check_secret(one)
        if names.count(one.name) > 1:
            raise Invalid(f"there are several secrets with the name {one.name}", field="secrets")
    if wanted:
        _insert(actor=actor, sandbox=sandbox, wanted=wanted)


@sensitive_variables()
def secret_rotate(
    *,
    secret_id: str,
    value: str,
    actor: Actor,
    hosts: Sequence[str] | None = None,
    places: Sequence[str] | None = None,
) -> Secret:
    """Another value. Hosts and places can be others only together with it.

    Whoever could bind a value that he does not know to a host of his would have it sent to himself. NotFound,
    Forbidden, Invalid, SecretsLocked.
    """
    with transaction.atomic():
        secret = _locked(secret_id, actor)
        if hosts is not None:
            secret_rules.check_hosts(secret.name, hosts)
            secret.hosts = list(hosts)
        if places is not None:
            secret_rules.check_places(secret.name, places)
            secret.places = list(places)
        secret_rules.check_value(secret.name, value, secret.places)
        keys = crypto.keyring()
        secret.sealed, secret.key = keys.seal(value, bound_to=_bound_to(secret)), keys.current
        _require_room([secret], sandbox=secret.sandbox)
        secret.version += 1
        secret.rotated_at, secret.rotated_by, secret.pushed_at = timezone.now(), actor.label[:150], None
        secret.save()
        _record(actor, "secret.rotate", secret)
        _announce(secret, actor=actor, said="has another value")
    return secret


def secret_revoke(*, secret_id: str, actor: Actor) -> Secret:
    """Remove it: no request gets it any more. What was the row is returned. NotFound, Forbidden."""
    with transaction.atomic():
        secret = _locked(secret_id, actor)
        _record(actor, "secret.revoke", secret)
        key = secret.pk
        secret.delete()
        _announce(secret, actor=actor, said="was revoked", env=True)
        secret.pk = key
    return secret


@sensitive_variables()
def secrets_for_machine(*, sandbox: Sandbox) -> Bundle:
    """What its machine is to be told now, with placeholders where there were none yet. SecretsLocked."""
    delivery = SecretDelivery.objects.filter(sandbox=sandbox).first()
    # Before the secrets: a change between the two is told once more, and never taken for told.
    version = delivery.wanted if delivery else 0
    rows = effective(sandbox)
    if not rows:
        return Bundle(version, ())
    placeholders = _placeholders(sandbox, [row.name for row in rows])
    keys = crypto.keyring()
    secrets = tuple(
        api.Secret(
            name=row.name,
            placeholder=placeholders[row.name],
            value=keys.open(bytes(row.sealed), bound_to=_bound_to(row), name=row.name),
            hosts=tuple(row.hosts),
            places=tuple(row.places),
        )
        for row in rows
    )
    return Bundle(version, secrets, tuple((row.pk, row.version) for row in rows))


def secrets_given(*, sandbox: Sandbox, bundle: Bundle, env: bool) -> bool:
    """The node has them; `env`: so has the guest's environment. Whether a change since then is yet to be told."""
    if not bundle.secrets and not bundle.version and not SecretDelivery.objects.filter(sandbox=sandbox).exists():
        return False
    with transaction.atomic():
        delivery, _made = SecretDelivery.objects.get_or_create(sandbox=sandbox)
        mine = SecretDelivery.objects.filter(sandbox=sandbox)
        mine.filter(delivered__lt=bundle.version).update(delivered=bundle.version)
        if env:
            mine.update(names=sorted(bundle.env))
            mine.filter(wanted=bundle.version).update(env_behind=False)
        for key, version in bundle.rows:
            Secret.objects.filter(pk=key, version=version, pushed_at=None).update(pushed_at=timezone.now())
        delivery.refresh_from_db()
    return delivery.wanted > bundle.version


@sensitive_variables()
def secrets_copy(*, source: Sandbox, fork: Sandbox) -> None:
    """A fork's own copies, with the placeholders that its memory holds; in the transaction of the fork. SecretsLocked.

    From then on they are rotated and revoked each for themselves.
    """
    SecretPlaceholder.objects.bulk_create(
        SecretPlaceholder(sandbox=fork, name=row.name, placeholder=row.placeholder)
        for row in SecretPlaceholder.objects.filter(sandbox=source)
    )
    if (delivery := SecretDelivery.objects.filter(sandbox=source).first()) is not None:
        # Its environment is its source's, also where that is not as it ought to be.
        SecretDelivery.objects.create(sandbox=fork, wanted=1, names=delivery.names, env_behind=delivery.env_behind)
    for row in Secret.objects.filter(sandbox=source):
        keys = crypto.keyring()
        value = keys.open(bytes(row.sealed), bound_to=_bound_to(row), name=row.name)
        row.pk, row._state.adding = None, True
        row.public_id, row.sandbox, row.pushed_at = ids.secret_id(), fork, None
        row.sealed, row.key = keys.seal(value, bound_to=_bound_to(row)), keys.current
        row.save()


def secrets_relabelled(*, sandbox: Sandbox) -> None:
    """Its labels are others: other secrets of the organization may be meant for it. In the transaction of that."""
    if any(row.labels for row in Secret.objects.filter(organization_id=sandbox.organization_id, sandbox=None)):
        _concern([sandbox.pk], env=True)


def secrets_forget(*, sandbox: Sandbox) -> None:
    """Nothing of a sandbox comes back any more: its secrets go. Repeatable."""
    Secret.objects.filter(sandbox=sandbox).delete()
    SecretPlaceholder.objects.filter(sandbox=sandbox).delete()
    SecretDelivery.objects.filter(sandbox=sandbox).delete()


def secrets_prune() -> None:
    """Drop what was added to a sandbox at the very moment when it ended. Repeatable."""
    for model in (Secret, SecretPlaceholder, SecretDelivery):
        model.objects.filter(sandbox__machine_removed=True).delete()


def secrets_reseal() -> int:
    """Seal everything with the present key that another one has sealed, apps' variables as well; how many. Repeatable.

    SecretsLocked if one cannot be opened: all others are sealed anew by then.
    """
    current, count = crypto.keyring().current, 0
    failed: SecretsLocked | None = None
    for organization in Organization.objects.values_list("pk", flat=True).order_by("pk"):
        after = 0
        while True:
            with transaction.atomic():
                # Whoever seals holds it too: after this no row with another key can appear.
                _lock(organization)
                rows = list(
                    Secret.objects.filter(organization_id=organization, pk__gt=after)
                    .exclude(key=current)
                    .order_by("pk")[:BATCH]
                )
                for row in rows:
                    try:
                        _reseal(row)
                        count += 1
                    except SecretsLocked as error:
                        failed = error
            if not rows:
                break
            after = rows[-1].pk
        with transaction.atomic():
            _lock(organization)
            done, error_of_variables = variables_reseal(organization_id=organization)
        count, failed = count + done, error_of_variables or failed
    if failed is not None:
        raise failed
    return count


@sensitive_variables()
def _reseal(row: Secret) -> None:
    keys = crypto.keyring()
    value = keys.open(bytes(row.sealed), bound_to=_bound_to(row), name=row.name)
    Secret.objects.filter(pk=row.pk).update(sealed=keys.seal(value, bound_to=_bound_to(row)), key=keys.current)


@sensitive_variables()
def _insert(*, actor: Actor, sandbox: Sandbox | None, wanted: Sequence[WantedSecret]) -> list[Secret]:
    keys, made = crypto.keyring(), []
    for one in wanted:
        secret = Secret(
            public_id=ids.secret_id(),
            organization_id=actor.organization_id,
            sandbox=sandbox,
            name=one.name,
            hosts=list(one.hosts),
            places=list(one.places),
            labels=dict(one.labels),
            creator_id=actor.user_id,
            creator_name=actor.label[:150],
            key=keys.current,
        )
        secret.sealed = keys.seal(one.value, bound_to=_bound_to(secret))
        made.append(secret)
    _require_room(made, sandbox=sandbox)
    for secret in made:
        try:
            with transaction.atomic():
                secret.save()
        except IntegrityError:
            raise Conflict(f"there is a secret {secret.name} already: rotate it, or revoke it first") from None
        _record(actor, "secret.create", secret)
    return made


def _require_room(changed: Sequence[Secret], *, sandbox: Sandbox | None) -> None:
    """QuotaExceeded if these, which are new or have another value, were too much beside what there is."""
    organization_id = changed[0].organization_id
    there = Secret.objects.filter(organization_id=organization_id, sandbox=sandbox)
    others = there.exclude(pk__in=[secret.pk for secret in changed]).values_list("sealed", flat=True)
    sealed = [*others, *(secret.sealed for secret in changed)]
    secret_rules.check_room(
        count=len(sealed), size=sum(crypto.size_of(bytes(one)) for one in sealed), of_sandbox=sandbox is not None
    )


def _bound_to(secret: Secret) -> str:
    """The words that a value opens with: put into another row, or another organization's, it stays shut."""
    return f"secret {secret.public_id} of {secret.organization_id}"


def _action(sandbox: Sandbox | None) -> str:
    return "secret.edit_organization" if sandbox is None else "secret.edit"


def _lock(organization_id: int) -> None:
    Organization.objects.select_for_update(no_key=True).get(pk=organization_id)


def _locked(secret_id: str, actor: Actor) -> Secret:
    _lock(actor.organization_id)
    secret = (
        Secret.objects.select_related("sandbox")
        .filter(public_id=secret_id, organization_id=actor.organization_id)
        .first()
    )
    if secret is None or (secret.sandbox is not None and secret.sandbox.state == SandboxState.DELETED):
        # Who may not even see names is not told which exist.
        permissions.require(actor, "secret.view", actor.organization_id)
        raise NotFound(f"there is no secret {secret_id[:40]!r} in this organization")
    permissions.require(actor, _action(secret.sandbox), secret.organization_id)
    return secret


def _record(actor: Actor, action: str, secret: Secret) -> None:
    audit.record(
        actor=actor,
        organization_id=secret.organization_id,
        action=action,
        target=secret.name,
        secret=secret.public_id,
        sandbox=secret.sandbox.public_id if secret.sandbox else None,
        hosts=secret.hosts,
        places=secret.places,
        labels=secret.labels,
        version=secret.version,
    )


def _announce(secret: Secret, *, actor: Actor, said: str, env: bool = False) -> None:
    """Note which machines are to be told, and tell pages; in the transaction of the change."""
    _concern(_concerned(secret), env=env)
    sandbox = secret.sandbox
    payload = {"id": secret.public_id, "sandbox": sandbox.public_id if sandbox else None}
    audit.publish(organization_id=secret.organization_id, kind="secret", payload=payload)
    if sandbox is not None:
        timeline.record_happening(sandbox=sandbox, text=f"The secret {secret.name} {said}", actor=actor.label[:150])


def _concerned(secret: Secret) -> list[int]:
    if secret.sandbox_id is not None:
        return [secret.sandbox_id]
    # Also those that stand still: one of them may be about to start with what it read before this change.
    there = Sandbox.objects.filter(organization_id=secret.organization_id, machine_removed=False)
    return [row.pk for row in there.only("pk", "labels") if meant_for(secret.labels, row.labels)]


def _concern(sandboxes: Iterable[int], *, env: bool) -> None:
    keys = list(sandboxes)
    SecretDelivery.objects.bulk_create((SecretDelivery(sandbox_id=key) for key in keys), ignore_conflicts=True)
    changes: dict[str, Any] = {"wanted": F("wanted") + 1, **({"env_behind": True} if env else {})}
    SecretDelivery.objects.filter(sandbox_id__in=keys).update(**changes)


def _placeholders(sandbox: Sandbox, names: Sequence[str]) -> Mapping[str, str]:
    mine = SecretPlaceholder.objects.filter(sandbox=sandbox)
    known = dict(mine.values_list("name", "placeholder"))
    if missing := [name for name in names if name not in known]:
        # Of two that make them at a time one wins, and both read the winner's.
        SecretPlaceholder.objects.bulk_create(
            (SecretPlaceholder(sandbox=sandbox, name=name, placeholder=ids.placeholder()) for name in missing),
            ignore_conflicts=True,
        )
        known = dict(mine.values_list("name", "placeholder"))
    return known
