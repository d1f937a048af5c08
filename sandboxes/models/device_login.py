"""Programs that wait for a person to let them in."""

from __future__ import annotations

from django.db import models

from sandboxes.models.accounts import User
from sandboxes.models.organization import Organization


class DeviceLogin(models.Model):
    """A program's wish for a token, from when it asks until it has fetched it; services/device_logins.py writes it.

    `user` and `organization` are who let it in; `denied`: a person said no.
    """

    digest = models.CharField(max_length=64, unique=True)
    # What the person compares with what the program shows.
    user_code = models.CharField(max_length=9, unique=True)
    client_name = models.CharField(max_length=60)
    expires_at = models.DateTimeField()
    user = models.ForeignKey(User, null=True, on_delete=models.CASCADE, related_name="+")
    organization = models.ForeignKey(Organization, null=True, on_delete=models.CASCADE, related_name="+")
    denied = models.BooleanField(default=False)

    class Meta:
        """Indexes."""

        indexes = [models.Index(fields=["expires_at"])]

    def __str__(self) -> str:
        return self.client_name
