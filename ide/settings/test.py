"""Settings of the suite: a data root of its own, and nothing that a test does not ask for."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

# Set here and not in conftest.py, because mypy's Django plugin loads the settings as well.
# Processes that this one starts use the same, and leave it to this one to remove it.
if "ATOLL_DATA" not in os.environ:
    os.environ["ATOLL_DATA"] = tempfile.mkdtemp(prefix="atoll-test-")
    atexit.register(shutil.rmtree, os.environ["ATOLL_DATA"], ignore_errors=True)

from ide.settings.base import *  # noqa: F403

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
# Nothing is collected for unit tests, and WhiteNoise warns of a directory that is not there.
STATIC_ROOT = ENV.data / "static"  # noqa: F405
STATIC_ROOT.mkdir(exist_ok=True)
CELERY_TASK_ALWAYS_EAGER = True
for _database in DATABASES.values():  # noqa: F405
    # A file, because threads and event loops of one test must see the same database.
    if "sqlite3" in _database["ENGINE"]:
        _database["TEST"] = {"NAME": str(ENV.data / "test.sqlite3")}  # noqa: F405
# What vm/host/provision.py makes for an installation. The same for all, since tests run side by side on one data root.
ENV.secrets_key.parent.mkdir(exist_ok=True)  # noqa: F405
_fresh = ENV.secrets_key.with_suffix(f".{os.getpid()}")  # noqa: F405
_fresh.write_text("the-key-of-the-suite-and-of-nothing-else")
_fresh.rename(ENV.secrets_key)  # noqa: F405
