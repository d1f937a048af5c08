"""Named lists of hosts that are often allowed together: templates from which a person adds to a policy.

Package registries are those that the guest image's own apt, pip and npm ask, as the node says; the rest is data here.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from sandboxes import runtime
from vm.errors import VmError

log = structlog.get_logger("atoll.egress")


@dataclass(frozen=True, slots=True)
class HostList:
    """Patterns under a name; `note` says what one should know of it."""

    id: str
    name: str
    note: str
    patterns: tuple[str, ...]


MODELS = HostList(
    "models",
    "Model providers",
    "APIs of large language models",
    (
        "api.anthropic.com:443",
        "api.openai.com:443",
        "generativelanguage.googleapis.com:443",
        "api.mistral.ai:443",
        "api.cohere.com:443",
        "api.deepseek.com:443",
        "api.groq.com:443",
        "api.together.xyz:443",
        "api.x.ai:443",
        "openrouter.ai:443",
    ),
)
GIT = HostList(
    "git",
    "Git hosts",
    "Clone, fetch and push over HTTPS and SSH",
    (
        "github.com:443",
        "github.com:22",
        "codeload.github.com:443",
        "raw.githubusercontent.com:443",
        "objects.githubusercontent.com:443",
        "gitlab.com:443",
        "gitlab.com:22",
        "bitbucket.org:443",
        "bitbucket.org:22",
        "codeberg.org:443",
        "codeberg.org:22",
    ),
)


async def host_lists() -> list[HostList]:
    """All of them. While the node does not answer, or its image is of an earlier version, the registries are empty."""
    try:
        registries, note = tuple((await runtime.node().host_info()).registries), ""
    except VmError as error:
        log.warning("the node does not say which registries its image asks", error=str(error))
        registries, note = (), "The machines' host does not answer: try again in a moment"
    if not registries:
        note = note or "The guest image does not say which it uses: it is known once it is built anew"
    packages = HostList(
        "packages", "Package registries", note or "Those that apt, pip and npm in the sandbox ask", registries
    )
    return [packages, MODELS, GIT]
