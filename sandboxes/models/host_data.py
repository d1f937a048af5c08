"""Which data directory the host's machines are expected in."""

from __future__ import annotations

from django.db import models


class HostData(models.Model):
    """The one row of an installation: the tag that its node's data directory has, and another one seen there instead.

    `other` is empty while all is as it should be; `since` is when it was first seen.
    """

    tag = models.CharField(max_length=32)
    other = models.CharField(max_length=32, blank=True)
    since = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return self.tag
