"""The rows: one module per noun, no rules and no I/O beyond the database."""

from sandboxes.models.accounts import SignInLink, User
from sandboxes.models.app import App, AppVariable, DeployTimeline, Layer, LayerUse, Revision, RevisionStatus
from sandboxes.models.audit import AuditEntry
from sandboxes.models.checkpoint import Checkpoint, CheckpointCause, CheckpointFiles
from sandboxes.models.device_login import DeviceLogin
from sandboxes.models.egress import EgressDenial, EgressPosition, EgressRecord
from sandboxes.models.event import Event
from sandboxes.models.exposure import Access, Exposure, ExposureKind, GatewayProcess
from sandboxes.models.host_data import HostData
from sandboxes.models.organization import Membership, Organization, Role
from sandboxes.models.sandbox import Kind, Sandbox, SandboxState, StopCause, WebProcess
from sandboxes.models.secret import Secret, SecretDelivery, SecretPlaceholder
from sandboxes.models.ssh_key import SshKey, SshKeyKind
from sandboxes.models.timeline import TimelineEntry
from sandboxes.models.token import Token
from sandboxes.models.usage import UsageHour, UsageMeter
from sandboxes.models.volume import StrayVolume, Volume, VolumeHour, VolumeKind, VolumeMount, VolumeState

__all__ = [
    "Access",
    "App",
    "AppVariable",
    "AuditEntry",
    "Checkpoint",
    "CheckpointCause",
    "CheckpointFiles",
    "DeployTimeline",
    "DeviceLogin",
    "EgressDenial",
    "EgressPosition",
    "EgressRecord",
    "Event",
    "Exposure",
    "ExposureKind",
    "GatewayProcess",
    "HostData",
    "Kind",
    "Layer",
    "LayerUse",
    "Membership",
    "Organization",
    "Revision",
    "RevisionStatus",
    "Role",
    "Sandbox",
    "SandboxState",
    "Secret",
    "SecretDelivery",
    "SecretPlaceholder",
    "SignInLink",
    "SshKey",
    "SshKeyKind",
    "StopCause",
    "StrayVolume",
    "TimelineEntry",
    "Token",
    "UsageHour",
    "UsageMeter",
    "User",
    "Volume",
    "VolumeHour",
    "VolumeKind",
    "VolumeMount",
    "VolumeState",
    "WebProcess",
]
