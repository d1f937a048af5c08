"""Variables of apps and layers: made, changed, removed; the only module that writes or seals them.

Call it in a transaction that holds the organization's row, as services/secrets.py does and for its reason.
"""

from __future__ import annotations

from collections.abc import Sequence

from django.db.models import Q
from django.views.decorators.debug import sensitive_variables

from sandboxes import crypto, ids
from sandboxes.app_rules import VARIABLES, WantedVariable
from sandboxes.errors import Invalid, NotFound, QuotaExceeded, SecretsLocked
from sandboxes.models import App, AppVariable, Layer


@sensitive_variables()
def variables_merge(*, owner: App | Layer, wanted: Sequence[WantedVariable]) -> list[str]:
    """Change, add and remove what is named and leave the rest; the names that it concerned.

    NotFound for an id that there is not, Invalid, QuotaExceeded, SecretsLocked.
    """
    touched = []
    for one in wanted:
        row = _found(owner, one)
        if one.delete:
            if row is None:
                raise NotFound(f"there is no variable {(one.name or one.id or '')[:40]!r} to delete")
            touched.append(row.name)
            row.delete()
            continue
        if row is None:
            if one.id is not None:
                raise NotFound(f"there is no variable with the id {one.id[:40]!r}")
            row = _new(owner, one)
        touched.append(row.name)
        _apply(row, one)
    if (count := owner.variables.count()) > VARIABLES:
        raise QuotaExceeded(f"there would be {count} variables: there may be at most {VARIABLES}", limit=VARIABLES)
    return touched


@sensitive_variables()
def variable_value(row: AppVariable) -> str:
    """The value, opened where it is sealed: for what is deployed, and for nobody to see. SecretsLocked."""
    if row.sealed is None:
        return row.value
    return crypto.keyring().open(bytes(row.sealed), bound_to=_bound_to(row), name=row.name)


@sensitive_variables()
def variables_reseal(*, organization_id: int) -> tuple[int, SecretsLocked | None]:
    """Seal with the present key what another one has sealed; how many, and what went wrong with the others."""
    rows = AppVariable.objects.filter(organization_id=organization_id, sealed__isnull=False)
    count, failed = 0, None
    for row in rows.exclude(sealing_key=crypto.keyring().current).order_by("pk").iterator(100):
        try:
            _seal(row, variable_value(row))
            row.save(update_fields=["sealed", "sealing_key"])
            count += 1
        except SecretsLocked as error:
            failed = error
    return count, failed


def _found(owner: App | Layer, wanted: WantedVariable) -> AppVariable | None:
    there = owner.variables
    named = Q(public_id=wanted.id) if wanted.id is not None else Q(name=wanted.name)
    return there.filter(named).first()


@sensitive_variables("wanted")
def _new(owner: App | Layer, wanted: WantedVariable) -> AppVariable:
    if wanted.name is None or wanted.value is None:
        raise Invalid(f"the new variable {wanted.name} has no value", field="env_vars")
    whose = {"app": owner} if isinstance(owner, App) else {"layer": owner}
    return AppVariable(public_id=ids.app_id(), organization_id=owner.organization_id, name=wanted.name, **whose)


@sensitive_variables("wanted", "value")
def _apply(row: AppVariable, wanted: WantedVariable) -> None:
    if wanted.name is not None and wanted.name != row.name:
        others = AppVariable.objects.filter(app=row.app, layer=row.layer, name=wanted.name)
        if others.exists():
            raise Invalid(f"there is a variable {wanted.name} already", field="env_vars")
        row.name = wanted.name
    secret = row.secret if wanted.secret is None else wanted.secret
    if row.sealed is not None and not secret and wanted.value is None:
        # Members do not know each other's values, and could otherwise have them shown
        raise Invalid(f"{row.name} is secret: it is shown only with a new value", field="env_vars")
    if wanted.value is not None or secret != row.secret:
        value = row.value if wanted.value is None else wanted.value
        row.secret = secret
        if secret:
            _seal(row, value)
        else:
            row.value, row.sealed, row.sealing_key = value, None, ""
    if wanted.contexts is not None:
        row.contexts = None if wanted.contexts == "all" else list(wanted.contexts)
    row.save()


@sensitive_variables("value")
def _seal(row: AppVariable, value: str) -> None:
    keys = crypto.keyring()
    row.value, row.sealed, row.sealing_key = "", keys.seal(value, bound_to=_bound_to(row)), keys.current


def _bound_to(row: AppVariable) -> str:
    """The words that a value opens with: put into another row, or another organization's, it stays shut."""
    return f"app variable {row.public_id} of {row.organization_id}"
