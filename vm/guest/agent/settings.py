"""What an agent needs to know about where it runs: a machine of its own, or the host, for tests."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass, field

from vm.guest.agent.trust import ENVIRONMENT as TRUST

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Settings:
    """The user whose rights files and processes have; `real` is False outside a machine: nothing is switched."""

    real: bool
    user: str
    uid: int
    gid: int
    home: str
    login_shell: str
    groups: tuple[int, ...] = field(default=())

    def environment(self) -> dict[str, str]:
        """What processes start with, before anybody set anything."""
        return {
            "HOME": self.home,
            "USER": self.user,
            "LOGNAME": self.user,
            "SHELL": self.login_shell,
            "LANG": "C.UTF-8",
            "PATH": PATH if self.real else os.environ.get("PATH", PATH),
            **(TRUST if self.real else {}),
        }


def of_machine() -> Settings:
    """Inside a machine: everything belongs to the user `app`."""
    return Settings(
        real=True, user="app", uid=1000, gid=1000, home="/home/app", login_shell="/bin/bash", groups=(1000,)
    )


def of_host(home: str) -> Settings:
    """On the host, as whoever runs it; `home` stands for the home directory."""
    user = pwd.getpwuid(os.getuid()).pw_name
    return Settings(real=False, user=user, uid=os.getuid(), gid=os.getgid(), home=home, login_shell="/bin/bash")
