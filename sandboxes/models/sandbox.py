"""Sandboxes, and the web processes that hold the connections of session sandboxes."""

from __future__ import annotations

import uuid

from django.conf import settings
from django.db import models

from sandboxes.models.organization import Organization


class Kind(models.TextChoices):
    """A sandbox is thrown away when it stops; a workspace keeps its disk and can be started again."""

    SANDBOX = "sandbox"
    WORKSPACE = "workspace"


class SandboxState(models.TextChoices):
    """Where a sandbox is; sandboxes/states.py says which moves there are."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    SUSPENDING = "suspending"
    SUSPENDED = "suspended"
    RESUMING = "resuming"
    STOPPING = "stopping"
    STOPPED = "stopped"
    DELETED = "deleted"


class StopCause(models.TextChoices):
    """Why a sandbox stopped or was suspended; shown to people, so each has a sentence."""

    REQUESTED = "requested", "stopped on request"
    SESSION_ENDED = "session_ended", "the connection that created it ended"
    DEADLINE = "deadline", "its time was up"
    GUEST_SHUTDOWN = "guest_shutdown", "the machine shut itself down"
    GUEST_CRASHED = "guest_crashed", "the machine's kernel crashed"
    HYPERVISOR_DIED = "hypervisor_died", "the virtual machine's process died"
    BOOT_FAILED = "boot_failed", "the machine did not start"
    HOST_RESTARTED = "host_restarted", "the host was restarted"
    DISK_FULL = "disk_full", "the host's disk was full"
    NO_CAPACITY = "no_capacity", "the host had no room for it"
    MACHINE_LOST = "machine_lost", "the host no longer knows its machine"
    CREATE_DIED = "create_died", "the process that created it ended before the machine was started"
    IDLE = "idle", "nobody used it"
    HOST_SHUTDOWN = "host_shutdown", "Atoll was stopped on its host"
    LOW_MEMORY = "low_memory", "the host was short of memory"
    SPENDING_CAP = "spending_cap", "the organization's spending cap for this month is reached"
    HOST_OUT_OF_MEMORY = "host_out_of_memory", "the host ran out of memory and ended the machine"
    MEMORY_LIMIT = "memory_limit", "the virtual machine's process reached its memory limit on the host"
    RESUME_FAILED = "resume_failed", "its saved memory could not be restored"
    RECORD_UNREADABLE = "record_unreadable", "its host cannot read what it noted of the machine"


class WebProcess(models.Model):
    """One running web process; when it is not seen for a while the session sandboxes it held have ended."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    started_at = models.DateTimeField(auto_now_add=True)
    seen_at = models.DateTimeField()

    def __str__(self) -> str:
        return str(self.id)


class Sandbox(models.Model):
    """One sandbox or workspace. Only services/lifecycle.py writes it, and services/egress.py what it may reach."""

    public_id = models.CharField(max_length=32, unique=True)
    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="sandboxes")
    kind = models.CharField(max_length=10, choices=Kind.choices, default=Kind.SANDBOX)
    name = models.CharField(max_length=100, blank=True)
    region = models.CharField(max_length=3)
    memory_mb = models.PositiveIntegerField()
    vcpus = models.PositiveSmallIntegerField()
    disk_gib = models.PositiveSmallIntegerField()
    labels = models.JSONField(default=dict)
    env = models.JSONField(default=dict)
    # Patterns of what it may reach. None: every public host; empty: nothing.
    allow_net = models.JSONField(null=True)
    # Patterns of what it may not, which go before them; its organization's own are not repeated here.
    deny_net = models.JSONField(default=list)
    # Whether a connection to a host that neither names waits for somebody's answer.
    ask_net = models.BooleanField(default=False)
    # Grows with every change of these; what a conditional UPDATE compares with.
    network_version = models.PositiveIntegerField(default=0)
    machine = models.CharField(max_length=32, unique=True)

    state = models.CharField(max_length=10, choices=SandboxState.choices, default=SandboxState.QUEUED)
    # Set while the machine runs but its agent does not answer; nothing else about the row changes then.
    unresponsive = models.BooleanField(default=False)
    queue_position = models.PositiveIntegerField(default=0)
    stages = models.JSONField(default=dict)
    # How the machine came to run the last time (vm.api.Origin), and what people should know of that.
    origin = models.CharField(max_length=10, blank=True)
    note = models.CharField(max_length=500, blank=True)
    # The machine with its disk is gone from the node.
    machine_removed = models.BooleanField(default=False)

    session = models.BooleanField(default=False)
    held_by = models.ForeignKey(WebProcess, null=True, on_delete=models.SET_NULL, related_name="sandboxes")
    stop_at = models.DateTimeField(null=True)

    # Minutes without activity after which it is suspended. None: the installation's default; 0: never.
    idle_minutes = models.PositiveIntegerField(null=True)
    active_at = models.DateTimeField(null=True)
    # Minutes after which a workspace that is used gets a checkpoint. None: the installation's default; 0: never.
    checkpoint_minutes = models.PositiveIntegerField(null=True)
    # When one was last begun by itself, which is its claim: whoever sets it takes it.
    checkpoint_tried_at = models.DateTimeField(null=True)
    # A suspend that failed is not tried again at once for want of use.
    suspend_failed_at = models.DateTimeField(null=True)

    # Of its last stop or suspend.
    stop_cause = models.CharField(max_length=20, choices=StopCause.choices, blank=True)
    stop_detail = models.CharField(max_length=500, blank=True)
    stopped_by = models.CharField(max_length=150, blank=True)

    creator = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    creator_name = models.CharField(max_length=150, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    # When the state was entered; what a conditional UPDATE by time compares with.
    state_since = models.DateTimeField()
    started_at = models.DateTimeField(null=True)
    stopped_at = models.DateTimeField(null=True)
    deleted_at = models.DateTimeField(null=True)
    # The public id of the sandbox whose memory and disk it was copied from.
    forked_from = models.CharField(max_length=32, blank=True)
    # What it boots from where that is not the image: a volume, which it writes to, or a snapshot; and its public id.
    root = models.ForeignKey("sandboxes.Volume", null=True, on_delete=models.SET_NULL, related_name="rooted")
    boots_from = models.CharField(max_length=32, blank=True)

    class Meta:
        """Constraints and indexes."""

        indexes = [
            models.Index(fields=["organization", "-created_at"]),
            models.Index(fields=["state"]),
            # Few of all rows: those of which something is kept on a host
            models.Index(fields=["organization"], name="sandbox_kept", condition=models.Q(machine_removed=False)),
            models.Index(fields=["stop_at"]),
            # Of an organization's many the ones that stopped last, until they are hidden
            models.Index(
                fields=["organization", "-stopped_at"],
                name="sandbox_stopped_last",
                condition=models.Q(state=SandboxState.STOPPED),
            ),
        ]

    def __str__(self) -> str:
        return self.public_id
