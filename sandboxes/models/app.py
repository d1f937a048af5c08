"""Apps, the layers of variables that they share, and what will have been deployed of them."""

from __future__ import annotations

from django.db import models

from sandboxes.models.organization import Organization


class App(models.Model):
    """Something that is to be deployed. Only services/apps.py writes it."""

    public_id = models.CharField(max_length=36, unique=True)
    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="apps")
    slug = models.CharField(max_length=40)
    labels = models.JSONField(default=dict)
    # How its revisions are built and run, as it was given; sandboxes/app_rules.py says what may be in it.
    config = models.JSONField(default=dict)
    creator_name = models.CharField(max_length=150, blank=True)
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    class Meta:
        """Constraints and indexes."""

        constraints = [models.UniqueConstraint(fields=["organization", "slug"], name="one_app_a_slug")]

    def __str__(self) -> str:
        return self.slug


class Layer(models.Model):
    """Variables that several apps share. Only services/apps.py writes it."""

    public_id = models.CharField(max_length=36, unique=True)
    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="layers")
    slug = models.CharField(max_length=40)
    description = models.CharField(max_length=1000, blank=True)
    creator_name = models.CharField(max_length=150, blank=True)
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    class Meta:
        """Constraints and indexes."""

        constraints = [models.UniqueConstraint(fields=["organization", "slug"], name="one_layer_a_slug")]

    def __str__(self) -> str:
        return self.slug


class RevisionStatus(models.TextChoices):
    """How far a revision is; the last three are final."""

    QUEUED = "queued"
    BUILDING = "building"
    SKIPPED = "skipped"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Revision(models.Model):
    """One state of an app, which was deployed or is to be. Only services/revisions.py writes it."""

    public_id = models.CharField(max_length=32, unique=True)
    app = models.ForeignKey(App, on_delete=models.CASCADE, related_name="revisions")
    status = models.CharField(max_length=10, choices=RevisionStatus.choices, default=RevisionStatus.QUEUED)
    # Of a failed one: error, cancelled, timed_out or skipped.
    failure_reason = models.CharField(max_length=20, blank=True)
    labels = models.JSONField(default=dict)
    config = models.JSONField(default=dict)
    created_at = models.DateTimeField(auto_now_add=True)
    cancellation_requested_at = models.DateTimeField(null=True)
    build_finished_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return self.public_id


class DeployTimeline(models.Model):
    """A line of an app's revisions, of which one is active: production, a branch, or one revision's preview."""

    app = models.ForeignKey(App, on_delete=models.CASCADE, related_name="timelines")
    slug = models.CharField(max_length=200)
    partition = models.JSONField(default=dict)
    context = models.CharField(max_length=64)
    domains = models.JSONField(default=list)
    active = models.ForeignKey(Revision, null=True, on_delete=models.RESTRICT, related_name="active_in")
    revisions = models.ManyToManyField(Revision, related_name="timelines")

    class Meta:
        """Constraints and indexes."""

        constraints = [models.UniqueConstraint(fields=["app", "slug"], name="one_deploy_timeline_a_slug")]

    def __str__(self) -> str:
        return f"{self.slug} of {self.app_id}"


class LayerUse(models.Model):
    """A layer at a position in the list of an app, of a revision, or of another layer (`above`)."""

    layer = models.ForeignKey(Layer, on_delete=models.RESTRICT, related_name="uses")
    app = models.ForeignKey(App, null=True, on_delete=models.CASCADE, related_name="layer_uses")
    above = models.ForeignKey(Layer, null=True, on_delete=models.CASCADE, related_name="layer_uses")
    revision = models.ForeignKey(Revision, null=True, on_delete=models.CASCADE, related_name="layer_uses")
    position = models.PositiveIntegerField()

    class Meta:
        """Constraints and indexes."""

        ordering = ["position"]

    def __str__(self) -> str:
        return f"{self.layer_id} at {self.position}"


class AppVariable(models.Model):
    """An environment variable of an app, a layer or a revision. Only services/app_variables.py writes it.

    The value of a secret one is sealed, with the key `sealing_key` (sandboxes/crypto.py), and shown to nobody.
    """

    public_id = models.CharField(max_length=36, unique=True)
    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="+")
    app = models.ForeignKey(App, null=True, on_delete=models.CASCADE, related_name="variables")
    layer = models.ForeignKey(Layer, null=True, on_delete=models.CASCADE, related_name="variables")
    revision = models.ForeignKey(Revision, null=True, on_delete=models.CASCADE, related_name="variables")
    name = models.CharField(max_length=128)
    secret = models.BooleanField(default=False)
    value = models.TextField(blank=True)
    sealed = models.BinaryField(null=True)
    sealing_key = models.CharField(max_length=16, blank=True)
    # Names of contexts; None: all of them.
    contexts = models.JSONField(null=True)

    class Meta:
        """Constraints and indexes."""

        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(fields=["app", "name"], name="one_variable_an_app"),
            models.UniqueConstraint(fields=["layer", "name"], name="one_variable_a_layer"),
            models.UniqueConstraint(fields=["revision", "name"], name="one_variable_a_revision"),
        ]
        indexes = [models.Index(fields=["sealing_key"])]

    def __str__(self) -> str:
        return self.name
