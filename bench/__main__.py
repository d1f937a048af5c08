"""`python -m bench [NAME ...]`: measures an installation of its own and prints every number, met or missed."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from bench import channel, egress, http, idle, sdk, ssh, suspend, terminal, tti, volumes
from bench.report import Number, show
from tests.installation import Installation
from vm.image.build import DEFAULT_CACHE, build


def main() -> None:
    """Run the named measurements, or all."""
    image = build(DEFAULT_CACHE, lambda line: print(line, file=sys.stderr))
    with tempfile.TemporaryDirectory(prefix="atoll-bench-") as work:
        Path(work).chmod(0o755)  # for the service user
        installation = Installation(Path(work) / "data")
        measurements: dict[str, Callable[[], list[Number]]] = {
            "create": lambda: [sdk.cold_create(image, Path(work) / "cold")],
            "exec": lambda: [sdk.execs(installation)],
            "channel": lambda: channel.channel(image),
            "messages": sdk.messages,
            "terminal": lambda: terminal.terminal(installation),
            "burst": sdk.eight_at_once,
            "idle": lambda: idle.idle(installation),
            "tti": lambda: tti.tti(installation),
            "clones": lambda: tti.clones(Path(work) / "clones"),
            "suspend": lambda: suspend.suspend(installation),
            "egress": egress.egress,
            "http": lambda: http.http(installation),
            "volumes": volumes.volumes,
            "ssh": lambda: ssh.ssh(installation),
        }
        parser = argparse.ArgumentParser(prog="python -m bench")
        parser.add_argument("names", nargs="*", help=f"what to measure (default: all): {', '.join(measurements)}")
        names = parser.parse_args().names or list(measurements)
        if unknown := set(names) - set(measurements):
            parser.error(f"there is no {', '.join(sorted(unknown))}")
        installation.start()
        try:
            sdk.point_at(installation)
            numbers: list[Number] = []
            failed: list[str] = []
            for name in names:
                began = time.monotonic()
                try:
                    numbers += measurements[name]()
                except Exception:
                    # The other numbers took minutes too: show them, and say which are missing
                    failed.append(name)
                    traceback.print_exc()
                print(f"  {name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        finally:
            installation.stop()
    show(numbers)
    if failed:
        sys.exit(f"could not be measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
