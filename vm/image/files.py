"""The files that our layer puts over the Debian tree."""

from __future__ import annotations

import dataclasses

from vm.image import recipe


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """One file: its path below the root, without the leading slash; `owner` is user and group."""

    path: str
    text: str
    mode: int = 0o644
    owner: int = 0


_PROFILE = """\
export LANG=C.UTF-8
if [ -n "$BASH_VERSION" ] && [ -f "$HOME/.bashrc" ]; then . "$HOME/.bashrc"; fi
"""

_BASHRC = """\
case $- in *i*) ;; *) return ;; esac
HISTCONTROL=ignoreboth
HISTSIZE=10000
shopt -s histappend checkwinsize
PS1='\\[\\e[32m\\]\\u@\\h\\[\\e[0m\\]:\\[\\e[34m\\]\\w\\[\\e[0m\\]\\$ '
alias ls='ls --color=auto' ll='ls -l --color=auto' grep='grep --color=auto'
"""

_POWER = """\
#!/bin/sh
# There is no init system to ask: PID 1 ends the machine on this signal.
exec kill -s USR2 1
"""

FILES = (
    File("etc/hosts", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tsandbox\n"),
    # Refused at once by the loopback: a lookup without a network fails instead of waiting
    File("etc/resolv.conf", "nameserver 10.0.0.1\noptions timeout:1 attempts:2\n"),
    File("etc/default/locale", "LANG=C.UTF-8\n"),
    File("etc/environment", f"PATH={recipe.PATH}\nLANG=C.UTF-8\n"),
    File("etc/sudoers.d/app", f"{recipe.USER} ALL=(ALL:ALL) NOPASSWD: ALL\nDefaults:{recipe.USER} !fqdn\n", 0o440),
    File("etc/fstab", "/dev/vda / ext4 rw,noatime 0 1\n"),
    # Services that packages install are not started: there is no init system
    File("usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755),
    *(File(f"usr/sbin/{name}", _POWER, 0o755) for name in ("poweroff", "halt", "reboot", "shutdown")),
    File(f"{recipe.HOME[1:]}/.profile", _PROFILE, owner=recipe.UID),
    File(f"{recipe.HOME[1:]}/.bashrc", _BASHRC, owner=recipe.UID),
    File("root/.profile", _PROFILE),
    File("root/.bashrc", _BASHRC),
)
