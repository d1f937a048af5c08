"""The official Python SDK, unmodified, against a running server."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from deno_sandbox import AsyncDenoDeploy, DenoDeploy
from deno_sandbox.errors import ProcessAlreadyExited, RpcValidationError, UnknownRpcMethod
from deno_sandbox.sandbox import SecretConfig
from websockets import InvalidStatus

from tests.sdk.conftest import Server

pytestmark = [pytest.mark.sdk, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]


@pytest.fixture(scope="module")
def environment(server: Server) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.client_environment().items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="module")
def sandbox(environment: Server) -> Iterator[Any]:
    """One sandbox for the tests of this module; each uses names of its own."""
    with DenoDeploy().sandbox.create(
        env={"GREETING": "hello", "UNICODE": "ünï→😀"}, labels={"suite": "python"}
    ) as made:
        yield made


def run(sandbox: Any, command: str, *args: str, **options: Any) -> tuple[bytes, bytes, Any]:
    process = sandbox.spawn(command, args=list(args), stdout="piped", stderr="piped", **options)
    out, err = process.stdout.read(), process.stderr.read()
    return out, err, process.wait()


def there(sandbox: Any, pid: int) -> bool:
    """Whether the sandbox has that process."""
    success: bool = run(sandbox, "test", "-e", f"/proc/{pid}")[2]["success"]
    return success


# -- secrets -----------------------------------------------------------------------------------------------------------


def test_secrets(environment: Server) -> None:
    """The guest has a placeholder wherever it looks, and no list or answer has the value; a variable goes behind it."""
    value = "v4lue-of-the-python-sdk"
    secrets: dict[str, SecretConfig] = {"API_KEY": {"hosts": ["api.example.com"], "value": value}}
    with DenoDeploy().sandbox.create(secrets=secrets, env={"API_KEY": "plain", "OTHER": "1"}) as made:
        placeholder = made.env.get("API_KEY")
        assert re.fullmatch(r"DENO_SECRET_PLACEHOLDER_[0-9a-f]{32,}", placeholder)
        # That client spells the names of variables anew, and leaves the values alone.
        assert {placeholder, "1"} <= set(made.env.as_dict().values())
        assert "plain" not in made.env.as_dict().values()
        assert run(made, "sh", "-c", "echo $API_KEY")[0].decode().strip() == placeholder
        assert value.encode() not in run(made, "/usr/bin/env")[0]
        with environment.rest() as rest:
            paths = ["", f"/{made.id}", f"/{made.id}/timeline", f"/{made.id}/secrets"]
            answers = [rest.get(f"/api/v1/sandboxes{path}").text for path in paths]
            answers.append(rest.get("/api/v1/audit").text)
        assert [one["name"] for one in json.loads(answers[3])] == ["API_KEY"]
        assert not [text for text in answers if value in text]
        with DenoDeploy().sandbox.create(secrets=secrets) as second:
            assert second.env.get("API_KEY") != placeholder


@pytest.mark.parametrize("hosts", [[], ["https://api.example.com"]])
def test_a_secret_without_a_host_is_refused(environment: Server, hosts: list[str]) -> None:
    secrets: dict[str, SecretConfig] = {"API_KEY": {"hosts": hosts, "value": "v4lue"}}
    with pytest.raises(InvalidStatus) as refused, DenoDeploy().sandbox.create(secrets=secrets):
        pass
    assert refused.value.response.status_code == 400
    assert b"hosts of the secret" in refused.value.response.body or b"at least one" in refused.value.response.body
    assert b"v4lue" not in refused.value.response.body


# -- processes ---------------------------------------------------------------------------------------------------------


def test_spawn(sandbox: Any) -> None:
    """Output, error output and exit status arrive whole."""
    out, err, status = run(sandbox, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (out, err) == (b"out\n", b"err\n")
    assert (status["success"], status["code"], status["signal"]) == (False, 3, None)


def test_short_lived_output_is_never_lost(sandbox: Any) -> None:
    """Twenty processes that end at once, and each one's output arrives."""
    for number in range(20):
        assert run(sandbox, "echo", str(number))[0] == f"{number}\n".encode()


def test_start_environment(sandbox: Any) -> None:
    """What `create(env=)` gave is there for every process, unicode included."""
    out, _err, _status = run(sandbox, "sh", "-c", 'printf "%s %s" "$GREETING" "$UNICODE"')
    assert out.decode() == "hello ünï→😀"


def test_spawn_options(sandbox: Any) -> None:
    """`env`, `clear_env` and `cwd` are honoured; a mangled name is there as the caller wrote it too."""
    out, _err, _status = run(sandbox, "sh", "-c", "echo $NODE_ENV $GREETING", env={"NODE_ENV": "test"})
    assert out == b"test hello\n"
    out, _err, _status = run(sandbox, "/usr/bin/env", env={"ONLY": "me"}, clear_env=True)
    assert b"GREETING" not in out
    assert b"ONLY=me" in out
    assert run(sandbox, "pwd", cwd="/usr")[0] == b"/usr\n"


def test_stdin(sandbox: Any) -> None:
    """5 MB through a process and back, and its stdin is closed at the end."""
    data = os.urandom(1_000_000) * 5
    process = sandbox.spawn("cat", stdin_data=io.BytesIO(data), stdout="piped")
    assert process.stdout.read() == data
    assert process.wait()["success"]


def test_killed_process(sandbox: Any) -> None:
    """A signal is told as Deno tells it."""
    out, _err, status = run(sandbox, "sh", "-c", "kill -TERM $$")
    assert out == b""
    assert (status["code"], status["signal"]) == (143, "SIGTERM")


def test_kill(sandbox: Any) -> None:
    """Leaving the context kills the process; killing one that ended is no error."""
    with sandbox.spawn("sleep", args=["100"]) as process:
        assert there(sandbox, process.pid)
    deadline = time.monotonic() + 10
    while there(sandbox, process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with sandbox.spawn("true") as process:
        process.wait()


def test_no_such_command(sandbox: Any) -> None:
    """It is an error of the call, with the name that Deno gives it."""
    with pytest.raises(Exception, match=r"NotFound.*ENOENT"):
        sandbox.spawn("no-such-command")


def test_concurrent_calls(sandbox: Any) -> None:
    """A process that runs does not hold up other calls."""
    sleeper = sandbox.spawn("sleep", args=["2"])
    began = time.monotonic()
    assert run(sandbox, "echo", "quick")[0] == b"quick\n"
    assert time.monotonic() - began < 2
    sleeper.wait()


# -- environment -------------------------------------------------------------------------------------------------------


def test_env(sandbox: Any) -> None:
    """Set, read, list and delete; later processes see it."""
    sandbox.env.set("ADDED", "later")
    assert sandbox.env.get("ADDED") == "later"
    assert run(sandbox, "sh", "-c", "echo $ADDED")[0] == b"later\n"
    assert "later" in sandbox.env.as_dict().values()
    sandbox.env.delete("ADDED")
    assert sandbox.env.get("ADDED") is None


# -- files -------------------------------------------------------------------------------------------------------------


def test_whole_files(sandbox: Any) -> None:
    """Text and bytes, written and read; an empty file too."""
    sandbox.fs.write_text_file("text.txt", "héllo\n")
    assert sandbox.fs.read_text_file("text.txt") == "héllo\n"
    data = os.urandom(400_000)
    sandbox.fs.write_file("data.bin", data)
    assert sandbox.fs.read_file("data.bin") == data
    sandbox.fs.write_file("empty", b"")
    assert sandbox.fs.read_file("empty") == b""
    sandbox.fs.write_file("invalid", b"a\xffb")
    assert sandbox.fs.read_text_file("invalid") == "a\ufffdb"


def test_large_file_is_written_from_a_stream(sandbox: Any) -> None:
    """20 MB from an iterable, larger than any buffer on the way."""
    piece = os.urandom(500_000)
    sandbox.fs.write_file("large", (piece for _ in range(40)))
    assert sandbox.fs.stat("large")["size"] == 20_000_000


def test_file_too_large_for_one_message(sandbox: Any) -> None:
    """The client could not take it and would hang: it is told what to do instead."""
    sandbox.fs.write_file("long", bytes(1_200_000))
    for read in (sandbox.fs.read_file, sandbox.fs.read_text_file):
        with pytest.raises(Exception, match="EFBIG"):
            read("long")


def test_write_options(sandbox: Any) -> None:
    """append, create, create_new and mode mean what Deno means by them."""
    sandbox.fs.write_text_file("opt", "a", mode=0o600)
    sandbox.fs.write_text_file("opt", "b", append=True)
    assert sandbox.fs.read_text_file("opt") == "ab"
    assert sandbox.fs.stat("opt")["mode"] & 0o777 == 0o600
    with pytest.raises(Exception, match="AlreadyExists"):
        sandbox.fs.write_text_file("opt", "c", create_new=True)
    with pytest.raises(Exception, match="NotFound"):
        sandbox.fs.write_text_file("not-there", "c", create=False)


def test_missing_file(sandbox: Any) -> None:
    """NotFound with ENOENT, and never the pair that means a process is gone."""
    for call in (sandbox.fs.read_file, sandbox.fs.stat, sandbox.fs.read_dir, sandbox.fs.remove):
        with pytest.raises(Exception, match=r"NotFound.*ENOENT") as raised:
            call("no/such/path")
        assert not isinstance(raised.value, ProcessAlreadyExited)


def test_directories(sandbox: Any) -> None:
    """mkdir, read_dir, rename, copy, remove, with their refusals."""
    sandbox.fs.mkdir("d/e", recursive=True)
    with pytest.raises(Exception, match="AlreadyExists"):
        sandbox.fs.mkdir("d")
    sandbox.fs.write_text_file("d/f", "x")
    names = {entry["name"]: entry["is_directory"] for entry in sandbox.fs.read_dir("d")}
    assert names == {"e": True, "f": False}
    with pytest.raises(Exception, match="ENOTEMPTY"):
        sandbox.fs.remove("d")
    sandbox.fs.copy_file("d/f", "d/g")
    sandbox.fs.rename("d/g", "d/h")
    assert sandbox.fs.read_text_file("d/h") == "x"
    sandbox.fs.remove("d", recursive=True)
    with pytest.raises(Exception, match="NotFound"):
        sandbox.fs.stat("d")


def test_links_and_metadata(sandbox: Any) -> None:
    """Symbolic links keep their target as written; chmod, truncate and utime take, chown as far as the user may."""
    sandbox.fs.write_text_file("target", "12345")
    sandbox.fs.symlink("target", "soft")
    sandbox.fs.link("target", "hard")
    assert sandbox.fs.read_link("soft") == "target"
    assert sandbox.fs.lstat("soft")["is_symlink"]
    assert not sandbox.fs.stat("soft")["is_symlink"]
    assert sandbox.fs.stat("hard")["nlink"] == 2
    assert sandbox.fs.real_path("soft").endswith("/target")
    sandbox.fs.chmod("target", 0o640)
    sandbox.fs.truncate("target", 2)
    sandbox.fs.utime("target", "2019-01-02T03:04:05Z", "2020-01-02T03:04:05Z")
    info = sandbox.fs.stat("target")
    assert (info["mode"] & 0o777, info["size"]) == (0o640, 2)
    assert (info["atime"], info["mtime"]) == ("2019-01-02T03:04:05.000Z", "2020-01-02T03:04:05.000Z")
    if info["uid"]:
        with pytest.raises(Exception, match="EPERM"):
            sandbox.fs.chown("target", uid=0)
    else:  # the node in memory runs its guests as root
        sandbox.fs.chown("target", uid=12)
        sandbox.fs.chown("target", gid=34)
        assert [sandbox.fs.stat("target")[name] for name in ("uid", "gid")] == [12, 34]


def test_umask(sandbox: Any) -> None:
    """The mask before is the answer, and new files have the new one; without a mask it is asked for."""
    before = sandbox.fs.umask(0o077)
    sandbox.fs.write_text_file("masked", "")
    assert sandbox.fs.umask() == 0o077
    assert sandbox.fs.umask(before) == 0o077
    sandbox.fs.write_text_file("unmasked", "")
    assert [sandbox.fs.stat(name)["mode"] & 0o777 for name in ("masked", "unmasked")] == [0o600, 0o666 & ~before]


def test_temporary_files(sandbox: Any) -> None:
    """Below /tmp or the directory that is asked for, with prefix and suffix."""
    directory = sandbox.fs.make_temp_dir(prefix="pre-", suffix="-post")
    file = sandbox.fs.make_temp_file(dir=directory, prefix="a", suffix=".txt")
    assert re.fullmatch("/tmp/pre-.+-post", directory)
    assert re.fullmatch(re.escape(directory) + r"/a.+\.txt", file)
    assert sandbox.fs.stat(directory)["is_directory"]
    assert sandbox.fs.stat(file)["is_file"]
    sandbox.fs.remove(file)
    sandbox.fs.remove(directory)


def test_walk_and_glob(sandbox: Any) -> None:
    """Arrays for Python: entries of a tree, and paths that match."""
    sandbox.fs.mkdir("tree/sub", recursive=True)
    for name in ("tree/a.json", "tree/sub/b.json", "tree/sub/c.txt"):
        sandbox.fs.write_text_file(name, "")
    assert {entry["path"] for entry in sandbox.fs.walk("tree")} == {
        "tree",
        "tree/a.json",
        "tree/sub",
        "tree/sub/b.json",
        "tree/sub/c.txt",
    }
    assert [entry["name"] for entry in sandbox.fs.walk("tree", exts=[".txt"], include_dirs=False)] == ["c.txt"]
    found = sandbox.fs.expand_glob("tree/**/*.json")
    assert sorted(path.rsplit("/tree/", 1)[1] for path in found) == ["a.json", "sub/b.json"]


def test_file_handles(sandbox: Any) -> None:
    """Read, write, seek, truncate, lock, sync, utime, stat; the end of a file is empty bytes."""
    with sandbox.fs.create("handle") as file:
        assert file.write(b"0123456789") == 10
        assert file.seek(2, 0) == 2
        assert file.read(3) == b"234"
        file.truncate(5)
        file.lock(True)
        file.unlock()
        file.sync()
        file.sync_data()
        file.utime(1, 1577934245)
        info = file.stat()
        assert info["size"] == 5
        assert (info["atime"], info["mtime"]) == ("1970-01-01T00:00:01.000Z", "2020-01-02T03:04:05.000Z")
        assert file.read(10) == b""


def test_lock_is_waited_for(environment: Server, sandbox: Any) -> None:
    """A second connection gets an exclusive lock only when the first lets go."""
    first = sandbox.fs.create("locked")
    first.lock(True)
    with DenoDeploy().sandbox.connect(sandbox.id) as second:
        handle = second.fs.open("locked")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(handle.lock, True)
            time.sleep(0.7)
            assert not waiting.done()
            first.close()
            waiting.result(10)


def test_upload_and_download(sandbox: Any, tmp_path: Path) -> None:
    """A local tree into the sandbox; downloading sends its path to the server, which has no such method."""
    (tmp_path / "up" / "sub").mkdir(parents=True)
    (tmp_path / "up" / "one.txt").write_text("1")
    (tmp_path / "up" / "sub" / "two.bin").write_bytes(bytes(100_000))
    sandbox.fs.upload(str(tmp_path / "up"), "uploaded")
    assert sandbox.fs.read_text_file("uploaded/one.txt") == "1"
    assert sandbox.fs.stat("uploaded/sub/two.bin")["size"] == 100_000
    with pytest.raises(UnknownRpcMethod):
        sandbox.fs.download(str(tmp_path / "down"), "uploaded")
    assert not (tmp_path / "down").exists()


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_unknown_method(sandbox: Any) -> None:
    """What the server does not have is `Method not found`."""
    with pytest.raises(UnknownRpcMethod):
        sandbox._bridge.run(sandbox._async._rpc.call("noSuchMethod", {}))
    for internal in ("shutdown", "identity", "session", "clock", "terminal.open"):
        with pytest.raises(UnknownRpcMethod):
            sandbox._bridge.run(sandbox._async._rpc.call(internal, {}))


def test_wrong_parameters(sandbox: Any) -> None:
    """A validation error that names the parameter."""
    with pytest.raises(RpcValidationError) as raised:
        sandbox._bridge.run(sandbox._async._rpc.call("readTextFile", {}))
    assert "- Path: path," in str(raised.value)


def test_line_of_100_mb(environment: Server, sandbox: Any) -> None:
    """One line of 100 MB on stdout costs its reader only: we hold little of it, a neighbour answers, and so does it."""
    with DenoDeploy().sandbox.create() as neighbour:
        before = {pid: memory(pid, "VmRSS") for pid in environment.pids()}
        assert before
        for pid in before:
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak is that from now on
        process = sandbox.spawn("sh", args=["-c", "head -c 100000000 /dev/zero | tr '\\0' x"], stdout="piped")
        assert run(neighbour, "echo", "meanwhile")[0] == b"meanwhile\n"
        assert len(process.stdout.read()) == 100_000_000
        assert run(neighbour, "echo", "after")[0] == b"after\n"
        grown = {pid: memory(pid, "VmHWM") - was for pid, was in before.items()}
        assert max(grown.values()) < 64, grown
    assert process.wait()["success"]
    assert run(sandbox, "echo", "alive")[0] == b"alive\n"


def memory(pid: int, kind: str) -> int:
    """MiB of a process: VmRSS is what it has, VmHWM what it had at most."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) // 1024


# -- lifetime ----------------------------------------------------------------------------------------------------------


def test_session_ends_with_its_connection(environment: Server) -> None:
    """The sandbox of a closed session is stopped, and says why."""
    with DenoDeploy().sandbox.create() as made:
        identifier = made.id
        with environment.rest() as rest:
            assert rest.get(f"/api/v1/sandboxes/{identifier}").json()["session"] is True
    with environment.rest() as rest:
        until = time.monotonic() + 30
        while (row := rest.get(f"/api/v1/sandboxes/{identifier}").json())["state"] != "stopped":
            assert time.monotonic() < until, row
            time.sleep(0.1)
    assert row["stop_reason"] == "session_ended"


def test_timed_sandbox_survives_its_connection(environment: Server) -> None:
    """With a timeout it can be connected to again, files and all; `kill` ends it, and then it is not found."""
    deploy = DenoDeploy()
    with deploy.sandbox.create(timeout="10m") as made:
        made.fs.write_text_file("kept", "yes")
        identifier = made.id
    with deploy.sandbox.connect(identifier) as again:
        assert again.fs.read_text_file("kept") == "yes"
        assert again.extend_timeout(1200).timestamp() > time.time() + 1100
        listed = {item["id"]: item["status"] for item in deploy.sandbox.list().items}
        assert listed[identifier] == "running"
        again.kill()
    listed = {item["id"]: item["status"] for item in deploy.sandbox.list().items}
    assert listed[identifier] == "stopped"
    with pytest.raises(Exception, match="404"), deploy.sandbox.connect(identifier):
        pass


def test_deadline_leaves_no_call_hanging(environment: Server) -> None:
    """When the time is up a call under way is answered with an error."""
    with DenoDeploy().sandbox.create(timeout="12s") as made:
        process = made.spawn("sleep", args=["100"])
        with pytest.raises(Exception, match=r"closed|not running: its time was up"):
            process.wait()


def test_suspend_and_connect(environment: Server) -> None:
    """A suspend leaves no call hanging; it is listed as running, and connecting goes on where it was."""
    deploy = DenoDeploy()
    with deploy.sandbox.create(timeout="10m") as made:
        made.fs.write_text_file("kept", "yes")
        process = made.spawn("sleep", args=["100"])
        with environment.rest() as rest, ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(process.wait)
            assert rest.post(f"/api/v1/sandboxes/{made.id}/suspend").status_code == 202
            with pytest.raises(Exception, match=r"closed|suspended on request"):
                waiting.result(30)
            until = time.monotonic() + 30
            while rest.get(f"/api/v1/sandboxes/{made.id}").json()["state"] != "suspended":
                assert time.monotonic() < until
                time.sleep(0.05)
    listed = {item["id"]: item["status"] for item in deploy.sandbox.list().items}
    assert listed[made.id] == "running"
    with deploy.sandbox.connect(made.id) as again:
        assert again.fs.read_text_file("kept") == "yes"
        again.kill()


def test_list_by_labels(environment: Server, sandbox: Any) -> None:
    """The filter as Python encodes it."""
    found = DenoDeploy().sandbox.list(labels={"suite": "python"})
    assert sandbox.id in [item["id"] for item in found.items]
    assert sandbox.id not in [item["id"] for item in DenoDeploy().sandbox.list(labels={"suite": "other"}).items]


async def test_async_face(environment: Server) -> None:
    """The asynchronous SDK, with several calls at once."""
    async with AsyncDenoDeploy().sandbox.create() as made:

        async def echo(number: int) -> bytes:
            process = await made.spawn("echo", args=[str(number)], stdout="piped")
            out: bytes = await process.stdout.read()
            await process.wait()
            return out

        assert await asyncio.gather(*(echo(n) for n in range(8))) == [f"{n}\n".encode() for n in range(8)]
        await made.fs.write_text_file("a", "b")
        assert await made.fs.read_text_file("a") == "b"


async def test_eight_at_once(environment: Server) -> None:
    """Eight sandboxes created at once all come up, although only two boot at a time."""
    deploy = AsyncDenoDeploy()

    async def one() -> bool:
        async with deploy.sandbox.create() as made:
            process = await made.spawn("true")
            return bool((await process.wait())["success"])

    assert await asyncio.gather(*(one() for _ in range(8))) == [True] * 8
