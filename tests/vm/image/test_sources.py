from __future__ import annotations

from pathlib import Path

from vm.image.sources import Source, derived, of_host

DEB822 = """\
Types: deb deb-src
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://disabled.example/debian
Suites: bookworm
Components: main
Enabled: no
"""

ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] https://one.example/debian/ bookworm main #
deb-src http://one.example/debian bookworm main
deb cdrom:[Debian]/ bookworm main
deb http://foreign.example/apt bookworm stable
deb [signed-by=/etc/apt/keyrings/vendor.gpg] http://vendor.example/apt bookworm main
deb http://backports.example/debian bookworm-backports main
"""


def test_deb822_is_read() -> None:
    """Each suite of each stanza becomes an archive of the other suite; disabled ones do not."""
    assert derived([("debian.sources", DEB822)], codename="bookworm", suite="trixie") == [
        Source("http://mirror.example/debian", "trixie", ("main", "contrib")),
        Source("http://mirror.example/debian", "trixie-updates", ("main", "contrib")),
        Source("http://mirror.example/debian-security", "trixie-security", ("main",)),
    ]


def test_one_line_entries_are_read() -> None:
    """Only Debian's own binary archives count, with whatever options they have."""
    found = derived([("sources.list", ONE_LINE)], codename="bookworm", suite="trixie")

    assert [source.line() for source in found] == ["deb https://one.example/debian/ trixie main"]


def test_the_same_archive_counts_once() -> None:
    """An archive that both formats name is taken once."""
    line = "deb http://mirror.example/debian bookworm main contrib\n"

    assert len(derived([("a.list", line), ("b.list", line)], codename="bookworm", suite="trixie")) == 1


def test_a_host_of_the_suite_itself(tmp_path: Path) -> None:
    """On a host that runs the suite the entries are taken as they are; files that apt ignores are ignored."""
    (tmp_path / "apt" / "sources.list.d").mkdir(parents=True)
    (tmp_path / "os-release").write_text('NAME="Debian"\nVERSION_CODENAME=trixie\n')
    (tmp_path / "apt" / "sources.list").write_text("deb http://mirror.example/debian trixie main\n")
    (tmp_path / "apt" / "sources.list.d" / "old.list.save").write_text("deb http://old.example/debian trixie main\n")

    assert of_host("trixie", tmp_path) == [Source("http://mirror.example/debian", "trixie", ("main",))]
