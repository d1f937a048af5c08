"""Reads and types every environment variable, once; nothing else in the project reads the environment."""

from __future__ import annotations

import os
import re
import secrets
from decimal import Decimal
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104 - compared, not bound
Words = Annotated[tuple[str, ...], NoDecode]


class Env(BaseSettings):
    """The installation's settings as the environment gives them; docs/settings.md explains each."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    data: Path = Field(default=Path("/var/lib/atoll"), alias="ATOLL_DATA")
    bind: str = Field(default="127.0.0.1", alias="ATOLL_BIND")
    port: int = Field(default=8000, alias="ATOLL_PORT", ge=1, le=65_535)
    public_url: str = Field(default="", alias="ATOLL_PUBLIC_URL")
    allowed_hosts: Words = Field(default=(), alias="ATOLL_ALLOWED_HOSTS")
    trusted_origins: Words = Field(default=(), alias="ATOLL_TRUSTED_ORIGINS")
    libvirt_uri: str = Field(default="", alias="ATOLL_LIBVIRT_URI")
    image_cache: Path = Field(default=Path("/var/cache/atoll/images"), alias="ATOLL_IMAGE_CACHE")
    quota_concurrent: int = Field(default=5, alias="ATOLL_QUOTA_CONCURRENT", ge=0)
    quota_vcpus: int = Field(default=0, alias="ATOLL_QUOTA_VCPUS", ge=0)
    quota_memory_mib: int = Field(default=0, alias="ATOLL_QUOTA_MEMORY_MIB", ge=0)
    quota_disk_gib: int = Field(default=500, alias="ATOLL_QUOTA_DISK_GIB", ge=0)
    quota_creates_per_minute: int = Field(default=300, alias="ATOLL_QUOTA_CREATES_PER_MINUTE", ge=0)
    max_lifetime: int = Field(default=30 * 60, alias="ATOLL_MAX_LIFETIME", ge=0, le=100 * 365 * 86_400)
    price_cpu_hour: Decimal = Field(default=Decimal("0.05"), alias="ATOLL_PRICE_CPU_HOUR", ge=0)
    price_memory_gb_hour: Decimal = Field(default=Decimal("0.016"), alias="ATOLL_PRICE_MEMORY_GB_HOUR", ge=0)
    price_volume_gib_month: Decimal = Field(default=Decimal("0.20"), alias="ATOLL_PRICE_VOLUME_GIB_MONTH", ge=0)
    currency: str = Field(default="USD", alias="ATOLL_CURRENCY", pattern=r"^[A-Z]{3}$")
    pool_floor: int = Field(default=2, alias="ATOLL_POOL_FLOOR", ge=0, le=64)
    pool_ceiling: int = Field(default=6, alias="ATOLL_POOL_CEILING", ge=0, le=64)
    pool_memory_mib: int = Field(default=0, alias="ATOLL_POOL_MEMORY_MIB", ge=0)
    clones: bool = Field(default=True, alias="ATOLL_CLONES")
    idle_minutes: int = Field(default=30, alias="ATOLL_IDLE_MINUTES", ge=0)
    checkpoint_minutes: int = Field(default=60, alias="ATOLL_CHECKPOINT_MINUTES", ge=0)
    checkpoints_kept: int = Field(default=10, alias="ATOLL_CHECKPOINTS_KEPT", ge=0, le=40)
    low_memory_mib: int = Field(default=768, alias="ATOLL_LOW_MEMORY_MIB", ge=0)
    stray_hours: int = Field(default=24, alias="ATOLL_STRAY_HOURS", ge=0)
    audit_days: int = Field(default=400, alias="ATOLL_AUDIT_DAYS", ge=0, le=36_500)
    egress_internal_allow: Words = Field(default=(), alias="ATOLL_EGRESS_INTERNAL_ALLOW")
    egress_dns: str = Field(default="", alias="ATOLL_EGRESS_DNS")
    egress_ask_seconds: int = Field(default=60, alias="ATOLL_EGRESS_ASK_SECONDS", ge=5, le=600)
    egress_connections: int = Field(default=1024, alias="ATOLL_EGRESS_CONNECTIONS", ge=1, le=4096)
    egress_days: int = Field(default=14, alias="ATOLL_EGRESS_DAYS", ge=1, le=3650)
    egress_rows: int = Field(default=100_000, alias="ATOLL_EGRESS_ROWS", ge=1)
    egress_ca_file: Path | None = Field(default=None, alias="ATOLL_EGRESS_CA_FILE")
    egress_hooks: Words = Field(default=(), alias="ATOLL_EGRESS_HOOKS")
    egress_hooks_path: Path | None = Field(default=None, alias="ATOLL_EGRESS_HOOKS_PATH")
    egress_interceptors: int = Field(default=1, alias="ATOLL_EGRESS_INTERCEPTORS", ge=1, le=64)
    egress_trust_host_store: bool = Field(default=True, alias="ATOLL_EGRESS_TRUST_HOST_STORE")
    expose_bind: str = Field(default="", alias="ATOLL_EXPOSE_BIND")
    expose_ports: str = Field(default="8400-8499", alias="ATOLL_EXPOSE_PORTS")
    expose_domain: str = Field(default="", alias="ATOLL_EXPOSE_DOMAIN")
    expose_port: int = Field(default=443, alias="ATOLL_EXPOSE_PORT", ge=1, le=65_535)
    expose_certificate: Path | None = Field(default=None, alias="ATOLL_EXPOSE_CERTIFICATE")
    expose_key: Path | None = Field(default=None, alias="ATOLL_EXPOSE_KEY")
    expose_public: bool = Field(default=True, alias="ATOLL_EXPOSE_PUBLIC")
    ssh_port: int = Field(default=0, alias="ATOLL_SSH_PORT", ge=0, le=65_535)
    ssh_host: str = Field(default="", alias="ATOLL_SSH_HOST")
    region: str = Field(default="loc", alias="ATOLL_REGION")
    log_level: str = Field(default="INFO", alias="ATOLL_LOG_LEVEL")
    database_url: str = Field(default="", alias="DATABASE_URL")
    redis_url: str = Field(default="", alias="REDIS_URL")

    @field_validator("allowed_hosts", "trusted_origins", "egress_internal_allow", "egress_hooks", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        return tuple(word for word in re.split(r"[,\s]+", value) if word) if isinstance(value, str) else value

    @field_validator("region")
    @classmethod
    def _three_letters(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z]{3}", value):
            raise ValueError("a region is exactly three lower-case letters, because sandbox ids carry it")
        return value

    @field_validator("expose_ports")
    @classmethod
    def _a_range(cls, value: str) -> str:
        found = re.fullmatch(r"(\d{1,5})-(\d{1,5})", value)
        if found is None or not 0 < int(found[1]) <= int(found[2]) < 65_536 or int(found[2]) - int(found[1]) > 2000:
            raise ValueError("a range of at most 2000 ports, such as 8400-8499")
        return value

    @field_validator("expose_domain")
    @classmethod
    def _a_domain(cls, value: str) -> str:
        value = value.lower().removeprefix("*.")
        if value and not re.fullmatch(r"([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]*[a-z0-9])?", value):
            raise ValueError("a domain such as sandboxes.example.org, whose names all lead to this server")
        return value

    @model_validator(mode="after")
    def _a_pair(self) -> Env:
        if (self.expose_certificate is None) != (self.expose_key is None):
            raise ValueError("ATOLL_EXPOSE_CERTIFICATE and ATOLL_EXPOSE_KEY belong together: give both or neither")
        return self

    @field_validator("public_url")
    @classmethod
    def _origin(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^/\s]+/?", value):
            raise ValueError("the public URL is an origin such as https://atoll.example.org, without a path")
        return value.rstrip("/")

    @field_validator("libvirt_uri")
    @classmethod
    def _of_this_host(cls, value: str) -> str:
        # A machine's tap, agent socket, pid file and disks are used by the node itself, on its own host
        if value and not re.fullmatch(r"qemu(\+unix)?:///\S*", value):
            raise ValueError(
                "the libvirt must be this host's own, such as qemu:///system: machines on others need a node"
            )
        return value

    @cached_property
    def origin(self) -> str:
        """The origin people and SDKs use, without a slash at its end."""
        if self.public_url:
            return self.public_url
        host = "127.0.0.1" if self.bind in WILDCARDS else self.bind
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @cached_property
    def hosts(self) -> list[str]:
        """Host names that requests may carry: loopback, the bind address, the public name, and what was added."""
        bound = "" if self.bind in WILDCARDS else self.bind
        names = ["localhost", "127.0.0.1", "[::1]", bound, urlsplit(self.origin).hostname or "", *self.allowed_hosts]
        names = list(dict.fromkeys(names))
        return [f"[{name}]" if ":" in name and not name.startswith("[") else name for name in names if name]

    @cached_property
    def origins(self) -> list[str]:
        """Origins whose pages may post to us and open our WebSockets, beside the one they were served from."""
        return list(dict.fromkeys([self.origin, *self.trusted_origins]))

    @cached_property
    def gateway_bind(self) -> str:
        """The address that the gateway listens on: the web process's, where no other is set."""
        return self.expose_bind or self.bind

    @cached_property
    def gateway_ports(self) -> range:
        """The ports that it gives to one exposure each; none where there is a domain for names."""
        first, last = self.expose_ports.split("-")
        return range(0) if self.expose_domain else range(int(first), int(last) + 1)

    @cached_property
    def ssh_hostname(self) -> str:
        """What people and SDKs connect to for SSH."""
        return self.ssh_host or urlsplit(self.origin).hostname or "127.0.0.1"

    @cached_property
    def ssh_ports(self) -> tuple[int, ...]:
        """Ports for SSH, of which the first that is free is taken; 0 is any."""
        return (self.ssh_port,) if self.ssh_port else (22, 2222, 0)

    @property
    def ssh_host_key(self) -> Path:
        """The key that SSH clients know this host by."""
        return self.data / "keys" / "ssh_host_ed25519_key"

    @cached_property
    def gateway_names(self) -> list[str]:
        """Names and addresses that the gateway's certificate is for."""
        bound = "" if self.gateway_bind in WILDCARDS else self.gateway_bind
        below = [self.expose_domain, f"*.{self.expose_domain}"] if self.expose_domain else []
        names = ["localhost", "127.0.0.1", "::1", bound, urlsplit(self.origin).hostname or "", *below]
        return [name for name in dict.fromkeys(names) if name]

    @property
    def gateway_lock(self) -> Path:
        """Locked by the gateway once it listens."""
        return self.data / "queue" / "gateway.lock"

    @property
    def authority(self) -> Path:
        """The installation's own certificate authority; its key lies beside it, and is root's."""
        return self.data / "keys" / "egress-ca.pem"

    @property
    def gateway_certificate(self) -> Path:
        """The certificate that the gateway shows, with what it was signed by; its key lies beside it."""
        return self.data / "keys" / "gateway.pem"

    @property
    def client_authorities(self) -> Path:
        """Whom programs that talk to us trust: the host's own authorities and the installation's. Public."""
        return self.data / "run" / "client-ca.pem"

    @property
    def gateway_key(self) -> Path:
        """The key of that certificate."""
        return self.data / "keys" / "gateway.key"

    @property
    def node_socket(self) -> Path:
        """Where the node of this machine listens."""
        return self.data / "run" / "node.sock"

    @property
    def worker_lock(self) -> Path:
        """Locked by the worker once it takes jobs."""
        return self.data / "queue" / "worker.lock"

    @property
    def node_key(self) -> Path:
        """The file with the key that signs capabilities for the node."""
        return self.data / "keys" / "node.key"

    @property
    def secrets_key(self) -> Path:
        """The file with the keys that secrets are sealed with, the present one first."""
        return self.data / "keys" / "secrets.key"

    def database(self) -> dict[str, Any]:
        """Django's DATABASES entry: PostgreSQL by DATABASE_URL, else SQLite in WAL mode below the data root."""
        if not self.database_url:
            return sqlite(self.data / "db" / "atoll.sqlite3")
        url = urlsplit(self.database_url)
        if url.scheme == "sqlite":
            return sqlite(Path(url.path))
        if url.scheme not in ("postgres", "postgresql"):
            raise ValueError("DATABASE_URL must begin with postgresql:// or sqlite:///")
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": unquote(url.path.lstrip("/")),
            "USER": unquote(url.username or ""),
            "PASSWORD": unquote(url.password or ""),
            # As libpq has it, a unix socket's directory is said behind the question mark
            "HOST": parse_qs(url.query).get("host", [unquote(url.hostname or "")])[0],
            "PORT": str(url.port or ""),
            "CONN_MAX_AGE": 60,
            "CONN_HEALTH_CHECKS": True,
        }

    def secret_key(self) -> str:
        """The installation's secret key, from `<data>/keys/secret_key`; made there on first use."""
        path = self.data / "keys" / "secret_key"
        try:
            return path.read_text().strip()
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            made = path.with_name(f"secret_key.{os.getpid()}")
            try:
                made.touch(mode=0o600)
                made.write_text(secrets.token_hex(32))
                # link, not rename: of two processes that come here at once one wins, and both read the winner's key.
                path.hardlink_to(made)
            except FileExistsError:
                pass
            finally:
                made.unlink(missing_ok=True)
            return path.read_text().strip()


def sqlite(path: Path) -> dict[str, Any]:
    """Django's DATABASES entry for one SQLite file that several processes write."""
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(path),
        "OPTIONS": {
            "timeout": 20,
            # A deferred transaction that reads first and writes later fails at once when another wrote in between.
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
    }


@lru_cache(maxsize=1)
def env() -> Env:
    """The environment, read at the first call."""
    return Env()
