"""What may be done with an app's revisions once they are there. Nothing makes one yet: deploying comes later."""

from __future__ import annotations

from django.db import transaction
from django.utils import timezone

from sandboxes import audit, permissions
from sandboxes.app_rules import RETENTIONS
from sandboxes.errors import Conflict, Forbidden, Invalid
from sandboxes.models import Organization, Revision, RevisionStatus
from sandboxes.permissions import Actor
from sandboxes.selectors.apps import revision_get

UNFINISHED = (RevisionStatus.QUEUED, RevisionStatus.BUILDING)


def revision_retain(*, revision: Revision, retention: object, actor: Actor) -> Revision:
    """How long it is kept: "auto" is what there is, "indefinite" is refused as Forbidden. Invalid for anything else."""
    permissions.require(actor, "app.edit", revision.app.organization_id)
    if retention not in RETENTIONS:
        raise Invalid(f"retention is one of {', '.join(RETENTIONS)}", field="retention")
    if retention != "auto":
        raise Forbidden("revisions cannot be kept for ever here: retention is 'auto'")
    return revision_get(actor=actor, name=revision.public_id)


def revision_cancel(*, revision: Revision, actor: Actor) -> Revision:
    """Ask for the end of its build; it ends later. Repeatable. Forbidden; Conflict for one that is finished."""
    permissions.require(actor, "app.edit", revision.app.organization_id)
    with transaction.atomic():
        mine = Revision.objects.filter(pk=revision.pk)
        asked = mine.filter(status__in=UNFINISHED, cancellation_requested_at=None)
        if asked.update(cancellation_requested_at=timezone.now()):
            _record(actor, "revision.cancel", revision)
        elif not mine.filter(status__in=UNFINISHED).exists():
            raise Conflict("the revision is finished: there is no build to cancel")
    return revision_get(actor=actor, name=revision.public_id)


def revision_delete(*, revision: Revision, actor: Actor) -> None:
    """Remove it. Forbidden; Conflict while it is being built, or is what a timeline shows."""
    permissions.require(actor, "app.edit", revision.app.organization_id)
    with transaction.atomic():
        Organization.objects.select_for_update(no_key=True).get(pk=revision.app.organization_id)
        revision.refresh_from_db()
        if revision.status in UNFINISHED:
            raise Conflict(f"the revision is {revision.status}: cancel it first", state=revision.status)
        if (timeline := revision.active_in.first()) is not None:
            raise Conflict(f"the revision is active in the timeline {timeline.slug}")
        _record(actor, "revision.delete", revision)
        revision.delete()


def _record(actor: Actor, action: str, revision: Revision) -> None:
    audit.record(
        actor=actor,
        organization_id=revision.app.organization_id,
        action=action,
        target=f"{revision.app.slug} {revision.public_id}",
    )
