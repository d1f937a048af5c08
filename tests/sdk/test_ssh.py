"""Logins that SDKs expose, used by OpenSSH's own client and by what is built on it."""

from __future__ import annotations

import hashlib
import os
import pty
import re
import select
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from deno_sandbox import DenoDeploy

from tests.installation import free_port
from tests.sdk.conftest import Server
from tests.sdk.test_expose import suspend

pytestmark = [pytest.mark.sdk, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


class Remote:
    """A sandbox with a login, and OpenSSH's programs pointed at it."""

    def __init__(self, sandbox: Any, folder: Path) -> None:
        self.sandbox = sandbox
        self.folder = folder
        told = sandbox.expose_ssh()
        self.host, self.user, self.port = told["hostname"], told["username"], told["port"]
        self.home = sandbox.fs.real_path(".")
        self.config = folder / "config"
        # Nothing of whoever runs the test: the user name has to be all that is needed
        self.config.write_text(
            f"Host box\n HostName {self.host}\n Port {self.port}\n User {self.user}\n"
            f" UserKnownHostsFile {folder}/known\n StrictHostKeyChecking accept-new\n IdentitiesOnly yes\n"
            " IdentityFile none\n BatchMode yes\n LogLevel ERROR\n"
        )

    def argv(self, *options: str) -> list[str]:
        return ["ssh", "-F", str(self.config), *options, "box"]

    def ssh(self, *command: str, options: tuple[str, ...] = (), **more: Any) -> subprocess.CompletedProcess[bytes]:
        return run([*self.argv(*options), *command], **more)


def run(argv: list[str], *, timeout: float = 120, **more: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(argv, capture_output=True, timeout=timeout, check=False, **more)  # noqa: TID251


@pytest.fixture(scope="module")
def environment(server: Server) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.client_environment().items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="module")
def box(environment: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    with DenoDeploy().sandbox.create(env={"GREETING": "hello"}) as made:
        yield Remote(made, tmp_path_factory.mktemp("ssh"))


@pytest.fixture
def place(box: Remote, request: pytest.FixtureRequest) -> str:
    """A directory in the sandbox of the test's own, as an absolute path."""
    path = f"{box.home}/{re.sub('[^a-z]', '_', request.node.name)}"
    box.sandbox.fs.mkdir(path)
    return path


# -- commands ----------------------------------------------------------------------------------------------------------


def test_the_login(box: Remote) -> None:
    """A random user name, and nothing else, is a login; another one is none."""
    assert len(box.user) >= 32
    assert isinstance(box.port, int)
    done = box.ssh("echo out; echo err >&2; echo $GREETING; pwd")
    assert (done.returncode, done.stderr) == (0, b"err\n")
    assert done.stdout.decode().split() == ["out", "hello", box.home]

    other = run([*box.argv("-l", box.user[:-1] + ("0" if box.user[-1] != "0" else "1")), "true"])
    assert other.returncode == 255
    assert b"Permission denied" in other.stderr


@pytest.mark.parametrize(("command", "code"), [("true", 0), ("exit 42", 42), ("exit 255", 255), ("no-such-cmd", 127)])
def test_exit_codes(box: Remote, command: str, code: int) -> None:
    """Of the command, as it is."""
    assert box.ssh(command).returncode == code


def test_a_command_that_a_signal_ends(box: Remote) -> None:
    """OpenSSH says so by 255, and in its log by name."""
    done = run([*box.argv("-o", "LogLevel=DEBUG1"), "kill -TERM $$"])
    assert done.returncode == 255
    assert b"exit-signal" in done.stderr or b"TERM" in done.stderr


def test_input_and_output(box: Remote) -> None:
    """Two megabytes through a filter come back whole; a closed input ends the command."""
    data = os.urandom(2_000_000)
    done = box.ssh("cat", input=data)
    assert (done.returncode, hashlib.sha256(done.stdout).digest()) == (0, hashlib.sha256(data).digest())
    assert box.ssh("wc -c", input=b"").stdout.strip() == b"0"
    assert box.ssh("head -c 5", input=data).stdout == data[:5]


def test_a_reader_that_stops(box: Remote, place: str) -> None:
    """Output that nobody takes stops the command after a bounded amount."""
    count = f"{place}/count"
    program = f"import os\nn=0\nwhile 1: n+=os.write(1,bytes(65536)); open('{count}','w').write(str(n))"
    process = subprocess.Popen(
        [*box.argv(), f'exec python3 -c "{program}"'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        seen, until = "", time.monotonic() + 60
        while True:
            time.sleep(2)
            assert time.monotonic() < until
            try:
                now = box.sandbox.fs.read_text_file(count)
            except Exception:  # noqa: S112 - not written yet
                continue
            if now and now == seen:
                break
            seen = now
        assert int(seen) < 64 << 20
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_who_leaves_ends_his_command(box: Remote, place: str) -> None:
    """The command is hung up when the connection is gone, with what it started."""
    process = subprocess.Popen(
        [*box.argv(), f"echo $$ > {place}/pid; trap 'echo HUP > {place}/end; exit' HUP; sleep 300 & wait"],
        stdout=subprocess.DEVNULL,
    )
    await_file(box, f"{place}/pid")
    process.kill()
    process.wait()
    assert await_file(box, f"{place}/end") == "HUP\n"


def await_file(box: Remote, path: str) -> str:
    until = time.monotonic() + 60
    while True:
        try:
            if text := box.sandbox.fs.read_text_file(path):
                return str(text)
        except Exception:  # noqa: S110 - not written yet
            pass
        assert time.monotonic() < until, path
        time.sleep(0.1)


# -- terminals ---------------------------------------------------------------------------------------------------------


class Tty:
    """OpenSSH on a terminal of its own."""

    def __init__(self, argv: list[str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execvp(argv[0], argv)  # noqa: S606
        self.seen = b""

    def resize(self, cols: int, rows: int) -> None:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, wanted: str, timeout: float = 60) -> str:
        end = time.monotonic() + timeout
        while wanted.encode() not in self.seen:
            assert time.monotonic() < end, self.seen[-2000:]
            if select.select([self.fd], [], [], 1)[0]:
                try:
                    self.seen += os.read(self.fd, 65_536)
                except OSError:
                    break
        assert wanted.encode() in self.seen, self.seen[-2000:]
        before, _, self.seen = self.seen.partition(wanted.encode())
        return before.decode(errors="replace")

    def end(self) -> int:
        """Its exit status."""
        while True:
            try:
                if not os.read(self.fd, 65_536):
                    break
            except OSError:
                break
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_shell(box: Remote) -> None:
    """A login shell on a terminal: type, size and its changes, interrupts, exit code."""
    tty = Tty(box.argv())
    tty.resize(91, 31)
    tty.type("PS1=; stty -echo; echo ready-$TERM\n")
    tty.until(f"ready-{os.environ.get('TERM', '')}")
    for cols, rows in ((91, 31), (120, 40)):
        tty.resize(cols, rows)
        until = time.monotonic() + 30
        while True:
            tty.type("stty size; echo done\n")
            if f"{rows} {cols}" in tty.until("done"):
                break
            assert time.monotonic() < until
            time.sleep(0.2)
    tty.type("sleep 300; echo interrupted\n")
    time.sleep(1)
    tty.type("\x03")
    tty.type("tty; echo 'still here'\n")
    assert "/dev/pts/" in tty.until("still here")
    tty.type("exit 7\n")
    assert tty.end() == 7


def test_a_command_on_a_terminal(box: Remote) -> None:
    """With -t, and its exit code."""
    tty = Tty([*box.argv("-t"), "tty; exit 3"])
    tty.until("/dev/pts/")
    assert tty.end() == 3


def test_a_flood_on_a_terminal(box: Remote) -> None:
    """Arrives whole, in order."""
    tty = Tty([*box.argv("-t"), "seq 1 30000; echo over"])
    text = tty.until("over", timeout=120)
    assert [int(word) for word in text.split()] == list(range(1, 30_001))
    assert tty.end() == 0


# -- files -------------------------------------------------------------------------------------------------------------


def test_scp_and_sftp(box: Remote, place: str, tmp_path: Path) -> None:
    """Both protocols of scp, there and back; modes and times with -p; sftp's batch."""
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "big").write_bytes(os.urandom(3_000_000))
    (tmp_path / "tree" / "sub" / "ünï x").write_text("x")
    (tmp_path / "tree" / "sub" / "ünï x").chmod(0o640)
    scp = ["scp", "-F", str(box.config), "-q", "-r", "-p"]
    for option, name in ((["-O"], "old"), ([], "new")):
        assert run([*scp, *option, str(tmp_path / "tree"), f"box:{place}/{name}"]).stderr == b""
        assert run([*scp, *option, f"box:{place}/{name}", str(tmp_path / name)]).stderr == b""
        assert (tmp_path / name / "big").read_bytes() == (tmp_path / "tree" / "big").read_bytes()
        assert (tmp_path / name / "sub" / "ünï x").stat().st_mode & 0o777 == 0o640
    batch = f"cd {place}\nmkdir s\nput {tmp_path}/tree/big s/big\nrename s/big s/b2\nls -l s\nget s/b2 {tmp_path}/b2\n"
    done = run(["sftp", "-F", str(box.config), "-b", "-", "box"], input=batch.encode())
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "b2").read_bytes() == (tmp_path / "tree" / "big").read_bytes()


def test_rsync(box: Remote, place: str, tmp_path: Path) -> None:
    """There with changes only, and back."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(30):
        (source / f"f{number}").write_bytes(os.urandom(10_000))
    rsync = ["rsync", "-a", "--delete", "--stats", "-e", f"ssh -F {box.config}"]
    assert run([*rsync, f"{source}/", f"box:{place}/r/"]).returncode == 0
    (source / "f3").write_bytes(b"changed")
    (source / "f4").unlink()
    done = run([*rsync, f"{source}/", f"box:{place}/r/"])
    assert re.search(rb"Number of regular files transferred: 1\b", done.stdout), done
    assert run([*rsync, f"box:{place}/r/", f"{tmp_path}/back/"]).returncode == 0
    assert run(["diff", "-r", str(source), str(tmp_path / "back")]).returncode == 0


def test_git(box: Remote, place: str, tmp_path: Path) -> None:
    """Push to a repository in the sandbox, and clone it from there."""
    env = {**os.environ, "GIT_SSH_COMMAND": f"ssh -F {box.config}", "GIT_CONFIG_GLOBAL": "/dev/null"}
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    assert box.ssh(f"git init -q --bare {place}/r.git").returncode == 0
    work = tmp_path / "work"
    for argv in (
        ["git", *who, "init", "-q", str(work)],
        ["git", "-C", str(work), *who, "commit", "-q", "--allow-empty", "-m", "from here"],
        ["git", "-C", str(work), "push", "-q", f"box:{place}/r.git", "HEAD:refs/heads/main"],
        ["git", "clone", "-q", "-b", "main", f"box:{place}/r.git", str(tmp_path / "clone")],
    ):
        assert run(argv, env=env).returncode == 0, argv
    assert b"from here" in run(["git", "-C", str(tmp_path / "clone"), "log", "--oneline"]).stdout


def test_sshfs(box: Remote, place: str, tmp_path: Path) -> None:
    """The sandbox's files as a file system of this computer."""
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    argv = ["sshfs", "-F", str(box.config), f"box:{place}", str(mounted)]
    done = run(argv)
    if b"fuse" in done.stderr and done.returncode:
        pytest.skip(f"this host mounts no FUSE: {done.stderr.decode().strip()}")
    assert done.returncode == 0, done.stderr
    try:
        data = os.urandom(300_000)
        (mounted / "a").write_bytes(data)
        (mounted / "d").mkdir()
        (mounted / "a").rename(mounted / "d" / "b")
        assert (mounted / "d" / "b").read_bytes() == data
        assert box.sandbox.fs.read_file(f"{place}/d/b") == data
        shutil.rmtree(mounted / "d")
    finally:
        run(["fusermount", "-u", "-z", str(mounted)])


# -- forwards ----------------------------------------------------------------------------------------------------------

ECHO = (
    "import socket,sys,threading\n"
    "f=socket.AF_UNIX if '/' in sys.argv[1] else socket.AF_INET\n"
    "s=socket.socket(f); s.bind(sys.argv[1] if f==socket.AF_UNIX else ('127.0.0.1',int(sys.argv[1]))); s.listen()\n"
    "print(s.getsockname()[1] if f==socket.AF_INET else 'up',flush=True)\n"
    "def serve(c):\n"
    " while d:=c.recv(65536): c.sendall(d.upper())\n"
    " c.close()\n"
    "while True: threading.Thread(target=serve,args=(s.accept()[0],),daemon=True).start()\n"
)


@pytest.fixture(scope="module")
def echo(box: Remote) -> dict[str, str]:
    """Servers in the sandbox that answer in capitals, on a port and on a socket."""
    box.sandbox.fs.write_text_file("echo.py", ECHO)
    found = {}
    for name, argument in (("port", "0"), ("path", f"{box.home}/echo.sock")):
        box.sandbox.spawn("sh", args=["-c", f"exec python3 echo.py {argument} > echo.{name}"])
        found[name] = await_file(box, f"echo.{name}").strip()
    found["path"] = f"{box.home}/echo.sock"
    return found


@contextmanager
def forwarding(box: Remote, *options: str) -> Iterator[None]:
    """A connection that only forwards, once it does."""
    process = subprocess.Popen(
        [*box.argv("-N", "-o", "ExitOnForwardFailure=yes", "-o", "LogLevel=DEBUG1", *options)],
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if b"Entering interactive session" in line or b"remote forward success" in line:
                if b"-R" in " ".join(options).encode() and b"success" not in line:
                    continue
                break
        else:
            raise AssertionError(lines)
        draining = threading.Thread(target=process.stderr.read, daemon=True)
        draining.start()
        yield
    finally:
        process.terminate()
        process.wait()
        draining.join(5)
        process.stderr.close()


def talk(connection: socket.socket, data: bytes = b"hello") -> bytes:
    with connection:
        connection.settimeout(60)
        connection.sendall(data)
        got = b""
        while len(got) < len(data):
            try:
                piece = connection.recv(65_536)
            except ConnectionResetError:
                break
            if not piece:
                break
            got += piece
        return got


def connected(port: int) -> socket.socket:
    until = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=60)
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.1)


def test_forward_to_a_port(box: Remote, echo: dict[str, str]) -> None:
    """-L to a port of the sandbox; one where nobody listens is refused, and the others go on."""
    one, none = free_port(), free_port()
    with forwarding(box, "-L", f"{one}:localhost:{echo['port']}", "-L", f"{none}:localhost:1"):
        assert talk(connected(one)) == b"HELLO"
        assert talk(connected(none)) == b""
        big = b"x" * 3_000_000
        with connected(one) as connection:
            connection.settimeout(60)
            sender = threading.Thread(target=connection.sendall, args=(big,))
            sender.start()
            got = 0
            while got < len(big):
                got += len(connection.recv(1 << 20))
            sender.join()


def test_forward_to_a_unix_socket(box: Remote, echo: dict[str, str], tmp_path: Path) -> None:
    """-L with sockets at both ends."""
    with forwarding(box, "-L", f"{tmp_path}/here:{echo['path']}"):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(tmp_path / "here"))
        assert talk(connection) == b"HELLO"


def test_dynamic_forward(box: Remote, echo: dict[str, str]) -> None:
    """-D: SOCKS, which names the target at each connection."""
    port = free_port()
    with forwarding(box, "-D", str(port)):
        connection = connected(port)
        connection.sendall(b"\5\1\0")
        assert connection.recv(2) == b"\5\0"
        connection.sendall(b"\5\1\0\3\x09localhost" + int(echo["port"]).to_bytes(2, "big"))
        assert connection.recv(10)[1] == 0
        assert talk(connection) == b"HELLO"


def upper_server() -> tuple[socket.socket, int]:
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(65_536):
                    connection.sendall(data.upper())

    threading.Thread(target=serve, daemon=True).start()
    return server, server.getsockname()[1]


CALL = (
    "import socket,sys\n"
    "u='/' in sys.argv[1]\n"
    "s=socket.socket(socket.AF_UNIX if u else socket.AF_INET)\n"
    "s.connect(sys.argv[1] if u else ('127.0.0.1',int(sys.argv[1])))\n"
    "s.sendall(b'hello'); print(s.recv(5).decode())\n"
)


def test_forward_back(box: Remote, place: str) -> None:
    """-R: a port, and a socket, of the sandbox lead to this computer; both are gone with the connection."""
    box.sandbox.fs.write_text_file("call.py", CALL)
    server, port = upper_server()
    there = free_port()
    with server:
        with forwarding(box, "-R", f"{there}:127.0.0.1:{port}"):
            assert box.ssh(f"python3 call.py {there}").stdout == b"HELLO\n"
        with forwarding(box, "-R", f"{place}/sock:127.0.0.1:{port}"):
            assert box.ssh(f"python3 call.py {place}/sock").stdout == b"HELLO\n"
    until = time.monotonic() + 30
    while box.ssh(f"python3 call.py {there} || test -e {place}/sock").returncode != 1:
        assert time.monotonic() < until
        time.sleep(0.2)


def test_agent_forward(box: Remote, tmp_path: Path) -> None:
    """-A: programs in the sandbox use the keys of the agent here; its socket is gone afterwards."""
    agent = run(["ssh-agent", "-s"]).stdout.decode()
    found = dict(re.findall(r"(SSH_\w+)=([^;]+);", agent))
    env = {**os.environ, **found}
    try:
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "key-of-here", "-f", str(tmp_path / "key")])
        assert run(["ssh-add", str(tmp_path / "key")], env=env).returncode == 0
        done = box.ssh("ssh-add -l; echo $SSH_AUTH_SOCK", options=("-A",), env=env)
        assert b"key-of-here" in done.stdout, done
        path = done.stdout.decode().split()[-1]
        assert path.startswith("/tmp/ssh-")
        until = time.monotonic() + 30
        while box.ssh(f"test -e {os.path.dirname(path)}").returncode != 1:
            assert time.monotonic() < until
            time.sleep(0.2)
        assert box.ssh("echo -n $SSH_AUTH_SOCK", env=env).stdout == b""
    finally:
        os.kill(int(found["SSH_AGENT_PID"]), 15)


# -- its end -----------------------------------------------------------------------------------------------------------


def test_a_login_resumes(environment: Server, tmp_path: Path) -> None:
    """Whoever logs in to a suspended sandbox has it resumed, with what was in its memory."""
    with DenoDeploy().sandbox.create(timeout="10m") as made, environment.rest() as rest:
        box = Remote(made, tmp_path)
        assert box.ssh("echo kept > /dev/shm/kept-by-a-login").returncode == 0
        suspend(rest, made.id)
        done = box.ssh("cat /dev/shm/kept-by-a-login; rm /dev/shm/kept-by-a-login")
        assert (done.returncode, done.stdout) == (0, b"kept\n")
        assert rest.delete(f"/api/v3/sandbox/{made.id}").status_code == 204


def test_people_log_in_with_keys(fake_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sandbox's id is the user name; a key, a certificate of hours, and one of an authority of one's own.

    On a node in memory: the token that `make up` makes adds no keys.
    """
    for name, value in fake_server.client_environment().items():
        monkeypatch.setenv(name, value)
    for name in ("key", "certified", "authority"):
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(tmp_path / name)])
    with DenoDeploy().sandbox.create() as sandbox, fake_server.rest() as rest:
        box = Remote(sandbox, tmp_path)

        def argv(key: str, command: str) -> list[str]:
            return [*box.argv("-l", sandbox.id, "-i", str(tmp_path / key)), command]

        def enters(key: str) -> bool:
            done = run(argv(key, "echo in"))
            assert done.stdout == b"in\n" or b"Permission denied" in done.stderr, done
            return done.returncode == 0

        def sign(validity: str) -> None:
            signing = ["ssh-keygen", "-q", "-s", str(tmp_path / "authority"), "-I", "x", "-V", validity]
            assert run([*signing, str(tmp_path / "certified.pub")]).returncode == 0

        assert not enters("key")
        added = rest.post("/api/v1/ssh/keys", json={"public_key": (tmp_path / "key.pub").read_text()})
        assert added.status_code == 201
        assert enters("key")
        assert not enters("certified")
        asked = {"public_key": (tmp_path / "certified.pub").read_text(), "hours": 1}
        issued = rest.post("/api/v1/ssh/certificates", json=asked)
        (tmp_path / "certified-cert.pub").write_text(issued.json()["certificate"])
        assert enters("certified")
        sign("+1h")
        assert not enters("certified")
        own = {"public_key": (tmp_path / "authority.pub").read_text(), "authority": True}
        assert rest.post("/api/v1/ssh/keys", json=own).status_code == 201
        assert enters("certified")
        assert not enters("authority")
        sign("-2h:-1h")
        assert not enters("certified")

        process = subprocess.Popen(argv("key", "echo in; sleep 300"), stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.read(3) == b"in\n"
        for key in rest.get("/api/v1/ssh/keys").json():
            assert rest.delete(f"/api/v1/ssh/keys/{key['id']}").status_code == 204
        assert process.wait(30) == 255
        process.stdout.close()
        assert not enters("key")


def test_logs_say_no_user_name(environment: Server, box: Remote) -> None:
    """It is a credential: no log has it."""
    box.ssh("true")
    for path in [environment.data / "log", *(environment.data / "logs").glob("*")]:
        if path.is_file():
            assert box.user.encode() not in path.read_bytes()


def test_it_ends_with_the_sandbox(environment: Server, tmp_path: Path) -> None:
    """Who is inside is sent away, and the name lets nobody in any more."""
    with DenoDeploy().sandbox.create() as made:
        gone = Remote(made, tmp_path)
        process = subprocess.Popen([*gone.argv(), "echo in; sleep 300"], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.read(3) == b"in\n"
        made.kill()
        assert process.wait(30) == 255
        process.stdout.close()
        until = time.monotonic() + 10
        while b"Permission denied" not in gone.ssh("true").stderr:
            assert time.monotonic() < until
            time.sleep(0.2)
