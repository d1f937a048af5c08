"""Members of an organization: invited, given other roles, removed; one owner always remains."""

from __future__ import annotations

from datetime import timedelta

from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import transaction
from django.utils import timezone

from sandboxes import audit, permissions
from sandboxes.errors import Conflict, Forbidden, Invalid, NotFound
from sandboxes.models import Membership, Organization, Role, Token, User
from sandboxes.permissions import RANK, Actor
from sandboxes.services.accounts import sign_in_link_create, sign_in_links_drop

INVITATION_LIFETIME = timedelta(days=7)


def member_invite(*, actor: Actor, email: str, role: Role) -> tuple[Membership, str | None]:
    """The new membership, and the secret of a link that signs him in once, if he has never signed in.

    Never a link for an account in use: it would let an administrator sign in as somebody else. For the same reason
    somebody whom another organization has invited cannot be added before he has signed in. Invalid for a bad address,
    Conflict for him and for somebody who is a member, Forbidden for a role above one's own.
    """
    permissions.require(actor, "member.invite", actor.organization_id)
    _require_rank(actor, role)
    address = email.strip().lower()
    try:
        validate_email(address)
    except ValidationError:
        raise Invalid("this is not an email address", field="email") from None
    with transaction.atomic():
        # Locked, because two organizations must not invite the same newcomer at once.
        user = User.objects.select_for_update(no_key=True).filter(email=address).first() or User.objects.create_user(
            address
        )
        _require_no_other_inviter(user, actor.organization_id)
        membership, made = Membership.objects.get_or_create(
            organization_id=actor.organization_id, user=user, defaults={"role": role}
        )
        if not made:
            raise Conflict(f"{address} is a member already", field="email")
        secret = sign_in_link_create(user=user, lifetime=INVITATION_LIFETIME) if user.waiting else None
        _tell(actor, "member.invite", address, role)
    return membership, secret


def invitation_renew(*, actor: Actor, member_id: int) -> tuple[Membership, str]:
    """A new link's secret for a member who has never signed in; the links before it end.

    Conflict for somebody who has signed in, Forbidden for a member with a role above the actor's own.
    """
    permissions.require(actor, "member.invite", actor.organization_id)
    with transaction.atomic():
        membership = _locked(actor, member_id)
        user = membership.user
        _require_rank(actor, Role(membership.role))
        if not user.waiting:
            raise Conflict(f"{user.email} has signed in already")
        _require_no_other_inviter(user, actor.organization_id)
        sign_in_links_drop(user=user)
        secret = sign_in_link_create(user=user, lifetime=INVITATION_LIFETIME)
        _tell(actor, "member.invite_again", user.email, None)
    return membership, secret


def member_change(*, actor: Actor, member_id: int, role: Role) -> Membership:
    """Another role for a member. Conflict for the last owner; an owner is changed, or made, by owners only.

    A higher role ends the invitation of somebody who has not signed in: whoever holds it may have a lower one.
    """
    with transaction.atomic():
        membership = _locked(actor, member_id)
        touches_owner = Role.OWNER in (role, membership.role)
        permissions.require(actor, "member.change_owner" if touches_owner else "member.change", actor.organization_id)
        if membership.role == Role.OWNER and role != Role.OWNER:
            _require_other_owner(membership)
        if membership.user.waiting and RANK[role] > RANK[Role(membership.role)]:
            sign_in_links_drop(user=membership.user)
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
        user = membership.user
        membership.delete()
        if user.waiting:
            sign_in_links_drop(user=user)
        _tell(actor, "member.remove", user.email, None)


def _locked(actor: Actor, member_id: int) -> Membership:
    # Every change of members of one organization waits for the others, or two owners could remove each other.
    Organization.objects.select_for_update(no_key=True).get(pk=actor.organization_id)
    membership = (
        Membership.objects.select_related("user").filter(pk=member_id, organization_id=actor.organization_id).first()
    )
    if membership is None:
        raise NotFound
    return membership


def _require_rank(actor: Actor, role: Role) -> None:
    if RANK[role] > RANK[actor.role]:
        raise Forbidden("nobody can give a role above his own")


def _require_no_other_inviter(user: User, organization_id: int) -> None:
    # Or who made the account, and may hold a link to it, would get into the other organization with it.
    if user.waiting and user.memberships.exclude(organization_id=organization_id).exists():
        raise Conflict(
            f"{user.email} was invited by another organization and has not signed in yet: invite again after that",
            field="email",
        )


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
