"""Which package registries the tools of a guest image ask, as the tools themselves say: none is written down here."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from vm.host.run import CommandFailed, run
from vm.image import recipe

_PORTS = {"http": 80, "https": 443}

# pip's own class knows from which host the index hands out its files
_PIP = """\
from pip._internal.configuration import Configuration
from pip._internal.exceptions import ConfigurationError
from pip._internal.models.index import PyPI
configuration = Configuration(isolated=False)
configuration.load()
def configured(key):
    try:
        return configuration.get_value(key)
    except ConfigurationError:
        return ""
print(configured("global.index-url") or f"{PyPI.simple_url} https://{PyPI.file_storage_domain}")
print(configured("global.extra-index-url"))
"""

_ASK = (
    ("apt-get", "--print-uris", "update"),
    ("python3", "-c", _PIP),
    ("npm", "config", "get", "registry"),
)


def of_tree(tree: Path) -> list[str]:
    """`host:port` of each, sorted, as apt, pip and npm in the tree are configured. OSError if one cannot be asked."""
    found: set[str] = set()
    for command in _ASK:
        # Nothing of this host's environment: a mirror that it names is not the guest's
        inside = ["chroot", str(tree), "env", "-i", f"PATH={recipe.PATH}", f"HOME={recipe.HOME}", "LANG=C.UTF-8"]
        try:
            said = hosts_of(run([*inside, *command], timeout=120).stdout)
        except CommandFailed as error:
            raise OSError(f"{command[0]} of the image does not say which registry it asks: {error.why}") from error
        if not said:
            raise OSError(f"{command[0]} of the image asks no registry")
        found |= said
    return sorted(found)


def hosts_of(text: str) -> set[str]:
    """`host:port` of every URL in a text."""
    found = set()
    for url in re.findall(r"https?://[^\s\"']+", text):
        parts = urlsplit(url)
        if parts.hostname:
            found.add(f"{parts.hostname}:{parts.port or _PORTS[parts.scheme]}")
    return found
