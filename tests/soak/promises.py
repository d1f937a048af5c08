"""What a file of a guest has to say, whatever was killed while it was written."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Promise:
    """`kept` was acknowledged, each of `maybe` was under way when something died."""

    kept: str = ""
    maybe: set[str] = field(default_factory=set)

    def copy(self) -> Promise:
        return Promise(self.kept, set(self.maybe))

    def check(self, found: str, whose: str) -> None:
        assert found in {self.kept, *self.maybe}, f"{whose}: {found!r}, promised {self}"


def note_script(place: str, text: str) -> str:
    """A shell's command that makes the note in a directory say `text`, or leaves it as it was."""
    return f"echo {text} > {place}/new && mv {place}/new {place}/note"
