"""The rows: one module per noun, no rules and no I/O beyond the database."""

from sandboxes.models.accounts import SignInLink, User
from sandboxes.models.audit import AuditEntry
from sandboxes.models.egress import EgressDenial, EgressPosition, EgressRecord
from sandboxes.models.event import Event
from sandboxes.models.organization import Membership, Organization, Role
from sandboxes.models.sandbox import Kind, Sandbox, SandboxState, StopCause, WebProcess
from sandboxes.models.secret import Secret, SecretDelivery, SecretPlaceholder
from sandboxes.models.timeline import TimelineEntry
from sandboxes.models.token import Token
from sandboxes.models.usage import UsageHour, UsageMeter

__all__ = [
    "AuditEntry",
    "EgressDenial",
    "EgressPosition",
    "EgressRecord",
    "Event",
    "Kind",
    "Membership",
    "Organization",
    "Role",
    "Sandbox",
    "SandboxState",
    "Secret",
    "SecretDelivery",
    "SecretPlaceholder",
    "SignInLink",
    "StopCause",
    "TimelineEntry",
    "Token",
    "UsageHour",
    "UsageMeter",
    "User",
    "WebProcess",
]
