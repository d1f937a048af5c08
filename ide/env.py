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

from pydantic import Field, field_validator
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
    low_memory_mib: int = Field(default=768, alias="ATOLL_LOW_MEMORY_MIB", ge=0)
    stray_hours: int = Field(default=24, alias="ATOLL_STRAY_HOURS", ge=0)
    egress_internal_allow: Words = Field(default=(), alias="ATOLL_EGRESS_INTERNAL_ALLOW")
    egress_dns: str = Field(default="", alias="ATOLL_EGRESS_DNS")
    egress_ask_seconds: int = Field(default=60, alias="ATOLL_EGRESS_ASK_SECONDS", ge=5, le=600)
    egress_days: int = Field(default=14, alias="ATOLL_EGRESS_DAYS", ge=1, le=3650)
    egress_rows: int = Field(default=100_000, alias="ATOLL_EGRESS_ROWS", ge=1)
    egress_ca_file: Path | None = Field(default=None, alias="ATOLL_EGRESS_CA_FILE")
    egress_interceptors: int = Field(default=1, alias="ATOLL_EGRESS_INTERCEPTORS", ge=1, le=64)
    egress_trust_host_store: bool = Field(default=True, alias="ATOLL_EGRESS_TRUST_HOST_STORE")
    region: str = Field(default="loc", alias="ATOLL_REGION")
    log_level: str = Field(default="INFO", alias="ATOLL_LOG_LEVEL")
    database_url: str = Field(default="", alias="DATABASE_URL")
    redis_url: str = Field(default="", alias="REDIS_URL")

    @field_validator("allowed_hosts", "trusted_origins", "egress_internal_allow", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        return tuple(word for word in re.split(r"[,\s]+", value) if word) if isinstance(value, str) else value

    @field_validator("region")
    @classmethod
    def _three_letters(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z]{3}", value):
            raise ValueError("a region is exactly three lower-case letters, because sandbox ids carry it")
        return value

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

    @property
    def node_socket(self) -> Path:
        """Where the node of this machine listens."""
        return self.data / "run" / "node.sock"

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
