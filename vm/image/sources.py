"""Finds the Debian mirrors that this host itself uses, and says them for another suite; pure but for reading files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

POCKETS = ("", "-updates", "-security")


@dataclass(frozen=True, slots=True)
class Source:
    """One archive: where, which suite of it, which components."""

    uri: str
    suite: str
    components: tuple[str, ...]

    def line(self) -> str:
        """As a one-line entry of sources.list."""
        return f"deb {self.uri} {self.suite} {' '.join(self.components)}"


def derived(texts: Iterable[tuple[str, str]], *, codename: str, suite: str) -> list[Source]:
    """The Debian archives among (file name, content) pairs of apt's sources, with `codename` replaced by `suite`.

    Archives of other parties are left out: they have other suites, no `main`, or a keyring of their own.
    """
    found: list[Source] = []
    for name, text in texts:
        entries = _deb822(text) if name.endswith(".sources") else _one_line(text)
        for uri, old, components, signed_by in entries:
            pocket = next((pocket for pocket in POCKETS if old == codename + pocket), None)
            foreign = signed_by and "debian-archive" not in signed_by
            if pocket is None or foreign or "main" not in components or uri.startswith("cdrom:"):
                continue
            source = Source(uri, suite + pocket, tuple(components))
            if source not in found:
                found.append(source)
    return found


def of_host(suite: str, etc: Path = Path("/etc")) -> list[Source]:
    """The mirrors of this host, for `suite`; empty where it has none of Debian's."""
    release = (etc / "os-release").read_text()
    codename = re.search(r'^VERSION_CODENAME="?([a-z]+)"?$', release, re.MULTILINE)
    apt = etc / "apt"
    paths = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    wanted = [path for path in paths if path.suffix in (".list", ".sources") and path.is_file()]
    texts = [(path.name, path.read_text(errors="replace")) for path in wanted]
    return derived(texts, codename=codename[1] if codename else suite, suite=suite)


_Entry = tuple[str, str, list[str], str]


def _one_line(text: str) -> Iterable[_Entry]:
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]+)", line)
        if match:
            options, uri, suite, components = match.groups()
            signed_by = re.search(r"signed-by=(\S+)", options or "")
            yield uri, suite, components.split(), signed_by[1] if signed_by else ""


def _deb822(text: str) -> Iterable[_Entry]:
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if line[0].isspace():
                fields[key] = fields.get(key, "") + " " + line.strip()
            elif ":" in line:
                key, value = line.split(":", 1)
                key = key.strip().lower()
                fields[key] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield uri, suite, fields.get("components", "").split(), fields.get("signed-by", "")
