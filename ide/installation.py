"""One machine's whole installation: prepares the host, runs every process in the foreground, and says how to get in.

`manage.py up` is its command. It runs as root and never opens the database itself: what touches it runs as the service
user, or SQLite's side files would belong to root and shut the web process out. Commands that people call see to that in
ide/management/as_service.py.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import pwd
import shlex
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ide.env import Env
from vm.api import MachineState
from vm.errors import VmError
from vm.host.authority import certificate_issue, certificate_place
from vm.host.confine import closed_ancestors
from vm.host.provision import Users, provision
from vm.host.run import CommandFailed, run
from vm.host.supervise import NotReady, Service, Supervisor
from vm.image import build as image
from vm.image.hashes import image_path
from vm.node.client import NodeClient

CHECKOUT = Path(__file__).resolve().parents[1]
HOST_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
STOPPING_SECONDS = 60
"""For which machines may take to come to rest; vm/host/atoll.service waits for that and for the processes' graces."""
ROOM = 3 * 2**30  # bytes: an image being built, and a few machines


class CannotStart(Exception):
    """One clear line: what is in the way, and what to do."""


@dataclass(frozen=True, slots=True)
class Running:
    """What `run/up.json` says of a running installation."""

    pid: int
    url: str
    token: str


def running(env: Env) -> Running | None:
    """The installation that runs on this data root now; PermissionError for whoever may not know."""
    try:
        said = json.loads((env.data / "run" / "up.json").read_text())
    except FileNotFoundError:
        return None
    return None if holder(env) is None else Running(**said)


def holder(env: Env) -> int | None:
    """The process that runs or prepares an installation on this data root; PermissionError for whoever may not know.

    0 for a moment while it takes hold.
    """
    try:
        lock = (env.data / "run" / "up.lock").open("rb")
    except FileNotFoundError:
        return None
    with lock:
        try:
            # whoever runs holds it: a stale file names a pid that may be somebody else's by now
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(lock.read() or 0)
    return None


def as_service(users: Users, *command: str, low_ports: bool = False) -> list[str]:
    """The argv that runs one of our management commands as the unprivileged user."""
    confined = [sys.executable, "-m", "vm.host.confine", users.service, *(["--low-ports"] if low_ports else [])]
    return [*confined, "--", sys.executable, "manage.py", *command]


def up(env: Env, *, users: Users, say: Callable[[str], None]) -> None:
    """Run the installation until it is asked to stop. CannotStart says in one line why it did not start."""
    began = time.monotonic()
    _check_host(env)
    try:
        provision(data=env.data, image_cache=env.image_cache, users=users)
        _check_reach(env, users)
        with claimed(env):
            _check_port(env)
            _build_image(env, say)
            static_files()
            _gateway_certificate(env, users)
            _client_authorities(env)
            first = _install(env, users, say)
            _run(env, users, first, began, say)
    except OSError as error:
        raise CannotStart(refused(error, env.data)) from error


def refused(error: OSError, place: Path) -> str:
    """One line about what the host refused; what to do about it only where that is known."""
    line = f"{error.strerror or error}: {error.filename or place}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{line}: make room, or set ATOLL_DATA to another disk"
    if error.errno == errno.EROFS:
        return f"{line}: mount it writable, or set ATOLL_DATA to another disk"
    return line


def _check_host(env: Env) -> None:
    if os.geteuid() != 0:
        raise CannotStart("this needs root, to start machines: use sudo")
    place = next(folder for folder in (env.data, *env.data.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < ROOM:
        raise CannotStart(f"only {free // 2**20} MiB are free at {place}: make room, or set ATOLL_DATA to another disk")


def _check_reach(env: Env, users: Users) -> None:
    for user, path in ((users.service, env.data), (users.machine, env.data), (users.machine, env.image_cache)):
        record = pwd.getpwnam(user)
        if closed := closed_ancestors(path / "below", record.pw_uid, [record.pw_gid]):
            raise CannotStart(
                f"the user {user} may not pass through {closed[0]}: chmod o+x {closed[0]}, or set another place"
            )


@contextmanager
def claimed(env: Env) -> Iterator[None]:
    """Hold this data root: nobody else runs on it, and "make down" finds us. CannotStart where somebody holds it."""
    # not "wb", which would empty the file of who holds it
    with (env.data / "run" / "up.lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = running(env)
            where = f"at {other.url} (process {other.pid})" if other else "and is starting"
            raise CannotStart(f'Atoll runs here already {where}: "make down" stops it') from None
        (env.data / "run" / "up.json").unlink(missing_ok=True)  # of one that was killed
        # Until the supervisor takes its signals itself, "make down" is to do what Ctrl-C does
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        lock.truncate(0)
        lock.write(str(os.getpid()).encode())
        lock.flush()
        yield


def _check_port(env: Env) -> None:
    family = socket.AF_INET6 if ":" in env.bind else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((env.bind, env.port))
        except OSError as error:
            raise CannotStart(
                f"port {env.port} on {env.bind} cannot be used ({error.strerror}): stop what uses it (see "
                f'"ss -ltnp sport = :{env.port}"), or choose another: ATOLL_PORT={env.port + 1} make up'
            ) from error


def _build_image(env: Env, say: Callable[[str], None]) -> None:
    if image_path(env.image_cache) is not None:
        return
    say("building the guest image (once, and again when its recipe changes: a few minutes)")
    try:
        image.build(env.image_cache, say)
    except image.BuildFailed as error:
        raise CannotStart(f"the guest image could not be built: {error}") from error


def static_files() -> None:
    """Collect what pages load, unless that was done since the front end was built. CannotStart if it never was.

    Files that are as they should be are left alone: another installation of this checkout may be serving them.
    """
    manifest = CHECKOUT / "frontend" / "dist" / "manifest.json"
    stamp = CHECKOUT / "staticfiles" / "manifest.json"
    if not manifest.exists():
        raise CannotStart("the front end is not built: `make up` builds it")
    with manifest.open() as built:
        fcntl.flock(built, fcntl.LOCK_EX)
        if stamp.exists() and stamp.stat().st_mtime >= manifest.stat().st_mtime:
            return
        # Whatever settings the caller runs with: tests have a place of their own for static files
        collect = ["collectstatic", "--settings=ide.settings.base", "--noinput", "--verbosity", "0"]
        run([sys.executable, "manage.py", *collect], cwd=CHECKOUT, timeout=300)


def _gateway_certificate(env: Env, users: Users) -> None:
    """What the gateway shows to visitors: the certificate that was given, or one of the installation's own."""
    service = pwd.getpwnam(users.service)
    owner = (service.pw_uid, service.pw_gid)
    if env.expose_certificate is not None and env.expose_key is not None:
        certificate_place(
            chain=env.expose_certificate.read_bytes(),
            key=env.expose_key.read_bytes(),
            certificate=env.gateway_certificate,
            key_file=env.gateway_key,
            owner=owner,
        )
        return
    certificate_issue(
        authority=env.authority,
        authority_key=env.authority.with_suffix(".key"),
        names=env.gateway_names,
        certificate=env.gateway_certificate,
        key=env.gateway_key,
        owner=owner,
    )


def _client_authorities(env: Env) -> None:
    """One file with which a program trusts both the world and us: its setting takes no second one."""
    known = [path.read_text() for path in (HOST_AUTHORITIES, env.authority) if path.exists()]
    fresh = env.client_authorities.with_suffix(".new")
    fresh.write_text("\n".join(known))
    fresh.chmod(0o644)
    fresh.rename(env.client_authorities)


def _install(env: Env, users: Users, say: Callable[[str], None]) -> dict[str, Any]:
    """Database, administrator, token: as the service user, which answers with JSON on a pipe, never in a log."""
    token = env.data / "keys" / "admin_token"
    known = token.read_text() if token.exists() else ""
    try:
        done = run(as_service(users, "install"), cwd=CHECKOUT, timeout=300, input_text=json.dumps({"token": known}))
    except CommandFailed as error:
        raise CannotStart(f"the database could not be prepared: {error}") from error
    first: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if first["token"] != known:
        token.touch(mode=0o600)
        token.write_text(first["token"])
    for line in first["changes"]:
        say(line)
    return first


def health(env: Env) -> str | None:
    """What the web process says: "ok", and a line for what is wrong; None where it does not serve."""
    bind = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(env.bind, env.bind)  # noqa: S104
    host = f"[{bind}]" if ":" in bind else bind
    try:
        with urllib.request.urlopen(f"http://{host}:{env.port}/healthz", timeout=2) as answer:
            return str(answer.read(4096).decode()) if answer.status == 200 else None
    except (OSError, urllib.error.URLError):
        return None


def _services(env: Env, users: Users) -> list[Service]:
    def node_ready() -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(env.node_socket))
            except OSError:
                return False
            return True

    def locked(path: Path) -> bool:
        try:
            with path.open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def worker_ready() -> bool:
        return locked(env.worker_lock)

    def gateway_ready() -> bool:
        return locked(env.gateway_lock)

    return [
        Service("node", (sys.executable, "manage.py", "node"), node_ready, patience=120, grace=20),
        Service(
            "web", tuple(as_service(users, "web")), lambda: health(env) is not None, patience=60, grace=10, beside=True
        ),
        Service("worker", tuple(as_service(users, "worker")), worker_ready, patience=60, grace=10, beside=True),
        Service(
            "gateway",
            tuple(as_service(users, "gateway", low_ports=True)),
            gateway_ready,
            patience=60,
            grace=10,
            beside=True,
        ),
    ]


def _run(env: Env, users: Users, first: dict[str, Any], began: float, say: Callable[[str], None]) -> None:
    supervisor = Supervisor(
        _services(env, users), cwd=CHECKOUT, logs=env.data / "logs", environment=dict(os.environ), say=say
    )
    here = env.data / "run" / "up.json"
    try:
        supervisor.start()
        here.touch(mode=0o600)
        here.write_text(json.dumps({"pid": os.getpid(), "url": env.origin, "token": first["token"]}))
        say(banner(env, first, time.monotonic() - began))
        say(f"stopping ({supervisor.run()})")
        _stop_machines(users, say)
        supervisor.stop(keep="node")
        if _machines_run(env):
            # Somebody came meanwhile, and woke one; from here on nobody can
            _stop_machines(users, say)
    except NotReady as error:
        raise CannotStart(str(error)) from error
    finally:
        supervisor.stop()
        here.unlink(missing_ok=True)


def _machines_run(env: Env) -> bool:
    try:
        machines = asyncio.run(NodeClient(env.node_socket, env.node_key).machine_list())
    except VmError:
        return False  # nobody would hear that they are to stop either
    return any(info.state not in (MachineState.STOPPED, MachineState.SUSPENDED) for info in machines)


def _stop_machines(users: Users, say: Callable[[str], None]) -> None:
    """End every sandbox with its reason written down, while the node is still there to do it."""
    try:
        done = run(as_service(users, "stop_all"), cwd=CHECKOUT, timeout=STOPPING_SECONDS)
        say(done.stdout.strip())
    except CommandFailed as error:
        say(f"sandboxes could not be stopped in order ({error}); the next start settles them")


def banner(env: Env, first: dict[str, Any], seconds: float) -> str:
    """What a person reads when all is ready."""
    return f"""Atoll is ready ({seconds:.1f} s).

  Open       {first["link"]}
             (signs you in once, within 15 minutes; a new one: make login-link)
  API token  {first["token"]}

  From a program: paste this into another terminal (eval "$(make -s env)" does the exports, too).

{snippet(env, first["token"])}

  Data {env.data} · logs {env.data / "logs"} · disk use and clean-up: make disk
  Port and address: ATOLL_PORT, ATOLL_BIND · from another computer: ssh -L {env.port}:127.0.0.1:{env.port} THIS-HOST,
  or under a name of its own: ATOLL_PUBLIC_URL (more names: ATOLL_ALLOWED_HOSTS, ATOLL_TRUSTED_ORIGINS; see README.md)
  Stop: Ctrl-C, or make down
"""


def snippet(env: Env, token: str) -> str:
    """Lines to paste into a shell, so nothing is indented that must not be; Debian's own Python takes no packages."""
    lines = "\n".join(exports(env, env.origin, token))
    return f"""{lines}
python3 -m venv atoll-sdk && atoll-sdk/bin/pip install --quiet deno-sandbox
atoll-sdk/bin/python - <<'PY'
from deno_sandbox import DenoDeploy
with DenoDeploy().sandbox.create() as sandbox:
    sandbox.spawn("uname", args=["-a"]).wait()
PY"""


def exports(env: Env, origin: str, token: str) -> list[str]:
    """The lines that point the official SDKs at this installation, and have their languages trust its ports."""
    authorities = shlex.quote(str(env.client_authorities))
    return [
        f"export DENO_SANDBOX_ENDPOINT={origin}",
        f"export DENO_DEPLOY_ENDPOINT={origin}",
        f"export DENO_DEPLOY_TOKEN={token}",
        *(f"export {name}={authorities}" for name in ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "DENO_CERT")),
    ]
