"""Runs a node for tests, as `manage.py node` does, on a data directory given as an argument."""

from __future__ import annotations

import ast
import asyncio
import logging
import sys
from pathlib import Path

from vm.image.build import DEFAULT_CACHE
from vm.node.config import NodeConfig
from vm.node.server import CannotServe, serve

if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(asctime)s %(name)s %(levelname)s %(message)s")
    data = Path(sys.argv[1])
    settings = {"image_cache": DEFAULT_CACHE, **ast.literal_eval(sys.argv[2])}
    for name in ("image_cache", "egress_ca_file"):
        if name in settings:
            settings[name] = Path(settings[name])
    try:
        asyncio.run(serve(NodeConfig(data=data, key_file=data / "keys" / "node.key", **settings)))
    except CannotServe as error:
        raise SystemExit(str(error)) from error
