"""Members of an organization: invited, given other roles, removed; one owner always remains."""

from __future__ import annotations

from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import transaction
from django.utils import timezone

from sandboxes import audit, permissions
from sandboxes.errors import Conflict, Forbidden, Invalid, NotFound
from sandboxes.models import Membership, Organization, Role, Token, User
from sandboxes.permissions import RANK, Actor
from sandboxes.services.accounts import sign_in_link_create


def member_invite(*, actor: Actor, email: str, role: Role) -> tuple[Membership, str | None]:
    """The new membership, and a sign-in link's secret if the account was made by this call.

    Never a link for an account that existed: it would let an administrator sign in as somebody else.
    Invalid for a bad address, Conflict for somebody who is a member, Forbidden for a role above one's own.
    """
    permissions.require(actor, "member.invite", actor.organization_id)
    if RANK[role] > RANK[actor.role]:
        raise Forbidden("nobody can give a role above his own")
    address = email.strip().lower()
    try:
        validate_email(address)
    except ValidationError:
        raise Invalid("this is not an email address", field="email") from None
    with transaction.atomic():
        user = User.objects.filter(email=address).first()
        secret = None
        if user is None:
            user = User.objects.create_user(address)
            secret = sign_in_link_create(user=user)
        membership, made = Membership.objects.get_or_create(
            organization_id=actor.organization_id, user=user, defaults={"role": role}
        )
        if not made:
            raise Conflict(f"{address} is a member already", field="email")
        _tell(actor, "member.invite", address, role)
    return membership, secret


def member_change(*, actor: Actor, member_id: int, role: Role) -> Membership:
    """Another role for a member. Conflict for the last owner; an owner is changed, or made, by owners only."""
    with transaction.atomic():
        membership = _locked(actor, member_id)
        touches_owner = Role.OWNER in (role, membership.role)
        permissions.require(actor, "member.change_owner" if touches_owner else "member.change", actor.organization_id)
        if membership.role == Role.OWNER and role != Role.OWNER:
            _require_other_owner(membership)
        membership.role = role
        membership.save(update_fields=["role"])
        _tell(actor, "member.change", membership.user.email, role)
    return membership


def member_remove(*, actor: Actor, member_id: int) -> None:
    """Remove a member, or leave; his personal tokens of this organization end with it. Conflict for the last owner."""
    with transaction.atomic():
        membership = _locked(actor, member_id)
        if membership.user_id != actor.user_id or actor.scopes is not None:
            permissions.require(
                actor,
                "member.change_owner" if membership.role == Role.OWNER else "member.change",
                actor.organization_id,
            )
        if membership.role == Role.OWNER:
            _require_other_owner(membership)
        Token.objects.filter(organization_id=actor.organization_id, user_id=membership.user_id, revoked_at=None).update(
            revoked_at=timezone.now()
        )
        email = membership.user.email
        membership.delete()
        _tell(actor, "member.remove", email, None)


def _locked(actor: Actor, member_id: int) -> Membership:
    # Every change of members of one organization waits for the others, or two owners could remove each other.
    Organization.objects.select_for_update().get(pk=actor.organization_id)
    membership = (
        Membership.objects.select_related("user").filter(pk=member_id, organization_id=actor.organization_id).first()
    )
    if membership is None:
        raise NotFound
    return membership


def _require_other_owner(membership: Membership) -> None:
    others = Membership.objects.filter(organization_id=membership.organization_id, role=Role.OWNER)
    if not others.exclude(pk=membership.pk).exists():
        raise Conflict("an organization keeps at least one owner: make somebody else an owner first")


def _tell(actor: Actor, action: str, email: str, role: Role | None) -> None:
    audit.record(
        actor=actor,
        organization_id=actor.organization_id,
        action=action,
        target=email,
        **({"role": str(role)} if role else {}),
    )
    audit.publish(organization_id=actor.organization_id, kind="member", payload={})
