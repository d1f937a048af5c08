"""By what a person logs in over SSH: keys, and authorities whose certificates are taken for him."""

from __future__ import annotations

from django.conf import settings
from django.db import models


class SshKeyKind(models.TextChoices):
    """What its holder may do with it."""

    KEY = "key", "a key that logs in"
    AUTHORITY = "authority", "signs certificates that log in"
    ISSUED = "issued", "the account's own authority"


class SshKey(models.Model):
    """A public key of a person's. Only services/ssh_keys.py writes it; no private key is kept anywhere."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="ssh_keys")
    name = models.CharField(max_length=100)
    kind = models.CharField(max_length=10, choices=SshKeyKind.choices, default=SshKeyKind.KEY)
    # As OpenSSH writes it, without a comment.
    public_key = models.TextField()
    fingerprint = models.CharField(max_length=64)
    # What the account's own authority is derived with; another one makes its certificates worthless.
    salt = models.CharField(max_length=64, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(null=True)

    class Meta:
        """Constraints and indexes."""

        constraints = [models.UniqueConstraint(fields=["user", "fingerprint"], name="one_ssh_key_a_person")]
        indexes = [models.Index(fields=["fingerprint"])]

    def __str__(self) -> str:
        return f"{self.name} of {self.user_id}"
