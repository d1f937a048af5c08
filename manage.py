#!/usr/bin/env python
"""Django's entry point for every process and command of Atoll."""

import errno
import os
import sys


def main() -> None:
    """Run the command named on the command line."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ide.settings.base")
    from django.core.management import execute_from_command_line

    _load_settings()
    execute_from_command_line(sys.argv)


def _load_settings() -> None:
    """Exit with one clear line where the settings, or the data root that they name, are of no use."""
    from django.conf import settings
    from pydantic import ValidationError

    try:
        _ = settings.SECRET_KEY
    except ValidationError as error:
        sys.exit("atoll: " + "; ".join(f"{wrong['loc'][0]}: {wrong['msg']}" for wrong in error.errors()))
    except ValueError as error:
        sys.exit(f"atoll: {error}")
    except PermissionError as error:
        sys.exit(f"atoll: {error.filename} is closed to this user: use sudo, or set ATOLL_DATA to a place of your own")
    except OSError as error:
        room = "make room, or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        sys.exit(f"atoll: nothing can be kept at ATOLL_DATA ({error.strerror}): {room}set it to another disk")


if __name__ == "__main__":
    main()
