"""The unit for systemd gives a stop the time that it may take, and systemd understands it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ide.env import env
from ide.installation import CHECKOUT, STOPPING_SECONDS, _services
from sandboxes.services import shutdown
from vm.host.provision import Users

UNIT = CHECKOUT / "vm" / "host" / "atoll.service"


def setting(name: str) -> str:
    found = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert len(found) == 1, f"{name}: {found}"
    return str(found[0])


def test_a_stop_has_time_to_save_machines_and_to_end_every_process() -> None:
    assert setting("KillMode") == "mixed"
    graces = sum(service.grace for service in _services(env(), Users()))
    assert shutdown.ALL_SECONDS + shutdown.SUSPEND_SECONDS < STOPPING_SECONDS
    # Once more for what was woken meanwhile
    assert 2 * STOPPING_SECONDS + graces < int(setting("TimeoutStopSec"))


def test_the_token_does_not_come_into_the_journal() -> None:
    assert setting("StandardOutput") == "null"


def test_systemd_understands_it(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed here")
    checkout = tmp_path / "checkout"
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to(sys.executable)
    unit = tmp_path / "atoll.service"

    def verified(text: str) -> str:
        unit.write_text(text.replace("@CHECKOUT@", str(checkout)))
        argv = ["systemd-analyze", "verify", "--man=no", str(unit)]
        # Its exit status says nothing of warnings
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            output, _ = process.communicate(timeout=60)
        return "\n".join(line for line in output.splitlines() if "atoll.service" in line)

    assert verified(UNIT.read_text()) == ""
    assert "kill mode" in verified(UNIT.read_text().replace("KillMode=mixed", "KillMode=none of these"))
