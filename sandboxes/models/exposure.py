"""What of a sandbox can be reached from outside, and the gateways that let people in."""

from __future__ import annotations

import uuid

from django.conf import settings
from django.db import models

from sandboxes.models.organization import Organization
from sandboxes.models.sandbox import Sandbox


class ExposureKind(models.TextChoices):
    """A port over HTTPS, or a login over SSH."""

    HTTP = "http"
    SSH = "ssh"


class Access(models.TextChoices):
    """Who may use an exposed port."""

    PUBLIC = "public", "whoever knows its address"
    ORGANIZATION = "organization", "members who are signed in"
    LINK = "link", "whoever has the link, until it expires"
    PASSWORD = "password", "whoever knows the password"


class Exposure(models.Model):
    """One way into a sandbox. Only services/exposures.py writes it."""

    public_id = models.CharField(max_length=32, unique=True)
    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="exposures")
    sandbox = models.ForeignKey(Sandbox, on_delete=models.CASCADE, related_name="exposures")
    kind = models.CharField(max_length=4, choices=ExposureKind.choices)
    # Nobody can guess it: the first label of its host name, or the user name of a login.
    name = models.CharField(max_length=64, unique=True)
    # What clients connect to: `host` or `host:port`.
    domain = models.CharField(max_length=255)
    # The gateway's port that is this exposure's alone, where there is no domain for names.
    gateway_port = models.PositiveIntegerField(null=True)
    # What is reached: a port, or what a process listens on. Neither: reserved only.
    port = models.PositiveIntegerField(null=True)
    pid = models.PositiveIntegerField(null=True)
    access = models.CharField(max_length=12, choices=Access.choices, default=Access.PUBLIC)
    # The hash of a password or of a link's token.
    secret_hash = models.CharField(max_length=128, blank=True)
    expires_at = models.DateTimeField(null=True)
    # Made by an SDK: it ends with the sandbox's present run.
    sdk = models.BooleanField(default=False)
    creator = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    creator_name = models.CharField(max_length=150, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    closed_at = models.DateTimeField(null=True)

    class Meta:
        """Constraints and indexes."""

        constraints = [
            models.UniqueConstraint(
                fields=["gateway_port"], condition=models.Q(closed_at=None), name="one_exposure_a_port"
            ),
        ]
        indexes = [models.Index(fields=["sandbox"], name="exposure_open", condition=models.Q(closed_at=None))]

    def __str__(self) -> str:
        return f"{self.public_id} {self.kind} of {self.sandbox_id}"


class GatewayProcess(models.Model):
    """One running gateway and where it listens; when it is not seen for a while nobody is sent there."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    started_at = models.DateTimeField(auto_now_add=True)
    seen_at = models.DateTimeField()
    # Ports that are given to one exposure each.
    ports = models.JSONField(default=list)
    # The port for all names below the domain, and the one for SSH.
    domain_port = models.PositiveIntegerField(null=True)
    ssh_port = models.PositiveIntegerField(null=True)

    def __str__(self) -> str:
        return str(self.id)
