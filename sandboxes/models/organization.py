"""Organizations and who belongs to them."""

from __future__ import annotations

from django.conf import settings
from django.db import models


class Role(models.TextChoices):
    """What a member may do, from most to least; sandboxes/permissions.py says what that is."""

    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"
    VIEWER = "viewer"


class Organization(models.Model):
    """The boundary: everything belongs to one, and nothing is seen from another."""

    slug = models.SlugField(max_length=40, unique=True)
    name = models.CharField(max_length=100)
    created_at = models.DateTimeField(auto_now_add=True)
    # None: the installation's default (docs/settings.md). 0: no limit, and of quota_concurrent: nothing may run.
    quota_concurrent = models.PositiveIntegerField(null=True, blank=True)
    quota_vcpus = models.PositiveIntegerField(null=True, blank=True)
    quota_memory_mib = models.PositiveIntegerField(null=True, blank=True)
    quota_disk_gib = models.PositiveIntegerField(null=True, blank=True)
    quota_creates_per_minute = models.PositiveIntegerField(null=True, blank=True)
    max_lifetime = models.PositiveIntegerField(null=True, blank=True)
    # What its owners let it spend in a calendar month (UTC); None: as much as its limits allow.
    spending_cap = models.DecimalField(max_digits=12, decimal_places=2, null=True, blank=True)
    # The month and level its people were last told of, as in "2026-11:near".
    spending_notice = models.CharField(max_length=20, blank=True)
    # What new sandboxes may reach where nobody says (None: every public host), and what none of them ever may.
    allow_net = models.JSONField(null=True, blank=True)
    deny_net = models.JSONField(default=list, blank=True)

    def __str__(self) -> str:
        return self.slug


class Membership(models.Model):
    """One person in one organization."""

    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10, choices=Role.choices)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        """Constraints and indexes."""

        constraints = [models.UniqueConstraint(fields=["organization", "user"], name="one_membership_each")]

    def __str__(self) -> str:
        return f"{self.user_id} in {self.organization_id}: {self.role}"
