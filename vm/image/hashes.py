"""What an image is named by: the hash of everything that it is made from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from vm.image import recipe, sources

HOST_CERTIFICATES = Path("/usr/local/share/ca-certificates")
RING = Path(__file__).resolve().parents[1]
"""Where our own sources are."""

_AGENT_FILES = ("__init__.py", "guest/__init__.py", "guest/frames.py")


def host_certificates() -> list[Path]:
    """Certificates that the host's administrator added to its store; the guest trusts them too."""
    return sorted(path for path in HOST_CERTIFICATES.rglob("*.crt") if path.is_file())


def _digest(parts: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=list).encode()).hexdigest()[:32]


def _content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def base_hash(mirrors: list[sources.Source] | None = None) -> str:
    """The hash of the Debian tree: packages, wheels, the host's own certificates; mirrors only where they are given."""
    return _digest(
        {
            "format": recipe.BASE_FORMAT,
            "suite": recipe.SUITE,
            "packages": recipe.PACKAGES,
            "kernel": recipe.KERNEL_PACKAGE,
            "busybox": recipe.BUSYBOX_PACKAGE,
            "wheels": (recipe.WHEELS, recipe.WHEEL_PYTHON, recipe.WHEEL_PLATFORM),
            "dpkg": (recipe.DPKG_EXCLUDE, recipe.DPKG_INCLUDE),
            "user": (recipe.USER, recipe.UID, recipe.HOME),
            "certificates": [_content(path) for path in host_certificates()],
            "mirrors": [source.line() for source in mirrors or []],
        }
    )


def agent_sources() -> list[Path]:
    """The modules that run inside the guest."""
    return [*(RING / name for name in _AGENT_FILES), *sorted((RING / "guest" / "agent").glob("*.py"))]


def _init_sources() -> list[Path]:
    return sorted(path for path in (RING / "image" / "init").iterdir() if path.is_file())


def current_hash(mirrors: list[sources.Source] | None = None) -> str:
    """The hash of the image that this checkout, on this host, would build."""
    return _digest(
        {
            "base": base_hash(mirrors),
            "format": recipe.IMAGE_FORMAT,
            "modules": (recipe.BOOT_MODULES, recipe.ROOT_MODULES),
            "cmdline": recipe.CMDLINE,
            "root": (recipe.ROOT_GIB, recipe.PATH),
            "layer": [(path.name, _content(path)) for path in [*agent_sources(), *_init_sources()]],
        }
    )


def image_path(cache: Path, image: str = "") -> Path | None:
    """The directory of a finished image (by default the current one), or None where it has not been built."""
    place = cache / (image or current_hash())
    return place if (place / "manifest.json").exists() else None
