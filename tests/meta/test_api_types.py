"""What is generated from the REST schemas is as fresh as they are; running this file as a program writes both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
DOCUMENT = CHECKOUT / "docs" / "openapi.json"
FRONTEND = CHECKOUT / "frontend"
TYPES = FRONTEND / "src" / "gen" / "api.ts"


def document() -> str:
    from ide.api.v1 import api

    return json.dumps(api.get_openapi_schema(), indent=2, sort_keys=True) + "\n"


def types(target: Path) -> None:
    program = FRONTEND / "node_modules" / ".bin" / "openapi-typescript"
    command = [str(program), str(DOCUMENT), "--output", str(target)]
    path = f"{CHECKOUT / '.tools' / 'node' / 'bin'}:{os.environ['PATH']}"
    subprocess.check_call(command, cwd=FRONTEND, env={**os.environ, "PATH": path}, stdout=subprocess.DEVNULL)


def test_the_openapi_document_is_fresh() -> None:
    assert DOCUMENT.read_text() == document(), f"run: python {Path(__file__).relative_to(CHECKOUT)}"


def test_the_types_of_the_front_end_are_fresh(tmp_path: Path) -> None:
    if not (FRONTEND / "node_modules").is_dir():
        pytest.fail("the front end's packages are not installed here: make test installs them")
    types(tmp_path / "api.ts")
    assert TYPES.read_text() == (tmp_path / "api.ts").read_text(), f"run: python {Path(__file__).relative_to(CHECKOUT)}"


if __name__ == "__main__":
    sys.path.insert(0, str(CHECKOUT))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ide.settings.test")
    import django

    django.setup()
    DOCUMENT.write_text(document())
    types(TYPES)
