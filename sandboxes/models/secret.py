"""Secrets, sealed; what stands for them in each sandbox; and how far each machine has been told of them."""

from __future__ import annotations

from django.conf import settings
from django.db import models

from sandboxes.models.organization import Organization
from sandboxes.models.sandbox import Sandbox


class Secret(models.Model):
    """One secret of an organization, or of one sandbox. Only services/secrets.py writes it, and nothing shows a value.

    `places`: where in a request it may be put beside header values. `labels`: which sandboxes have an organization's.
    """

    public_id = models.CharField(max_length=32, unique=True)
    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="secrets")
    sandbox = models.ForeignKey(Sandbox, null=True, on_delete=models.CASCADE, related_name="secrets")
    name = models.CharField(max_length=128)
    sealed = models.BinaryField()
    # Which key it is sealed with; sandboxes/crypto.py
    key = models.CharField(max_length=16)
    hosts = models.JSONField(default=list)
    places = models.JSONField(default=list)
    labels = models.JSONField(default=dict)
    version = models.PositiveIntegerField(default=1)
    creator = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    creator_name = models.CharField(max_length=150, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    rotated_at = models.DateTimeField(null=True)
    rotated_by = models.CharField(max_length=150, blank=True)
    # When the first machine was given this version.
    pushed_at = models.DateTimeField(null=True)

    class Meta:
        """Constraints and indexes."""

        constraints = [
            models.UniqueConstraint(
                fields=["organization", "name"], condition=models.Q(sandbox=None), name="one_secret_an_organization"
            ),
            models.UniqueConstraint(fields=["sandbox", "name"], name="one_secret_a_sandbox"),
        ]
        indexes = [models.Index(fields=["key"])]

    def __str__(self) -> str:
        return f"{self.public_id} {self.name}"


class SecretPlaceholder(models.Model):
    """What a sandbox's guest holds in place of the secret of that name; it outlives rotations and restarts."""

    sandbox = models.ForeignKey(Sandbox, on_delete=models.CASCADE, related_name="placeholders")
    name = models.CharField(max_length=128)
    placeholder = models.CharField(max_length=100)

    class Meta:
        """Constraints and indexes."""

        constraints = [models.UniqueConstraint(fields=["sandbox", "name"], name="one_placeholder_a_name")]

    def __str__(self) -> str:
        return f"{self.name} of {self.sandbox_id}"


class SecretDelivery(models.Model):
    """How far one sandbox's machine has been told of its secrets; a sandbox that never had any has no row."""

    sandbox = models.OneToOneField(Sandbox, on_delete=models.CASCADE, primary_key=True, related_name="secret_delivery")
    # Grows with every change that concerns the sandbox.
    wanted = models.PositiveBigIntegerField(default=0)
    # The change its node knows of.
    delivered = models.PositiveBigIntegerField(default=0)
    # Names in its guest's environment, and whether there ought to be others.
    names = models.JSONField(default=list)
    env_behind = models.BooleanField(default=False)

    def __str__(self) -> str:
        return f"secrets of {self.sandbox_id}: {self.delivered} of {self.wanted}"
