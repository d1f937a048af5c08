"""Ports that SDKs expose, visited by real clients over the gateway's TLS."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import ssl
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from deno_sandbox import DenoDeploy
from websockets.asyncio.client import connect

from tests.installation import processes
from tests.sdk.conftest import Server

pytestmark = [pytest.mark.sdk, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]
PROGRAM = (Path(__file__).parent / "http_server.py").read_text()


@pytest.fixture(scope="module")
def environment(server: Server) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.client_environment().items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="module")
def tls(server: Server) -> ssl.SSLContext:
    """What a client has that trusts this installation's authority, and nobody else."""
    return ssl.create_default_context(cafile=server.authority)


@pytest.fixture(scope="module")
def sandbox(environment: Server) -> Iterator[Any]:
    with DenoDeploy().sandbox.create() as made:
        made.fs.write_text_file("http_server.py", PROGRAM)
        yield made


def serve(sandbox: Any, port: int = 0) -> tuple[int, int]:
    """The pid and port of a server in the sandbox."""
    process = sandbox.spawn(
        "sh", args=["-c", f"mkdir -p served && cd served && exec python3 ../http_server.py {port} > ../port.txt"]
    )
    until = time.monotonic() + 60
    while True:
        try:
            if said := sandbox.fs.read_text_file("port.txt").strip():
                return process.pid, int(said)
        except Exception:  # noqa: S110 - not written yet
            pass
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.fixture(scope="module")
def served(sandbox: Any) -> tuple[int, int]:
    return serve(sandbox)


@pytest.fixture(scope="module")
def url(sandbox: Any, served: tuple[int, int]) -> str:
    return str(sandbox.expose_http(port=served[1]))


@pytest.fixture
def client(url: str, tls: ssl.SSLContext) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, verify=tls, timeout=30) as made:
        yield made


def test_a_request_arrives_as_it_is(client: httpx.Client, url: str) -> None:
    """Method, target, headers and body; what the visitor says of himself as a proxy would is replaced."""
    claims = {
        "Forwarded": "for=6.6.6.6",
        "X-Forwarded-For": "6.6.6.6",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Host": "bank.example",
    }
    answer = client.post("/p%20a?q=1&q=%32", content=b"x" * 1000, headers={"X-Mine": "yes", **claims})

    told = answer.json()
    assert (told["method"], told["target"], told["size"]) == ("POST", "/p%20a?q=1&q=%32", 1000)
    assert told["headers"]["x-mine"] == "yes"
    assert told["headers"]["x-forwarded-for"] == "127.0.0.1"
    assert told["headers"]["x-forwarded-proto"] == "https"
    assert told["headers"]["x-forwarded-host"] == told["headers"]["host"]
    assert "forwarded" not in told["headers"]
    assert told["headers"]["host"] == url.removeprefix("https://")
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert client.head("/").content == b""
    assert client.get("/").json()["method"] == "GET"


def test_connections_are_kept(client: httpx.Client) -> None:
    """Fifty requests in a row, of sizes that end everywhere in a piece, on one connection."""
    for size in range(0, 200_000, 4_001):
        data = os.urandom(size)
        assert client.post("/echo", content=data).content == data


def test_large_bodies(client: httpx.Client) -> None:
    """20 MB there and back at once, and 20 MB as a download, every byte."""
    block = os.urandom(1_000_000)

    def body() -> Iterator[bytes]:
        for _ in range(20):
            yield block

    digest = hashlib.sha256()
    with client.stream("POST", "/echo", content=body()) as answer:
        for piece in answer.iter_bytes():
            digest.update(piece)
    assert digest.digest() == hashlib.sha256(block * 20).digest()

    size = 20_000_003
    with client.stream("GET", f"/big?{size}") as answer:
        digest = hashlib.sha256()
        for piece in answer.iter_bytes():
            digest.update(piece)
    assert digest.digest() == hashlib.sha256((bytes(range(256)) * (size // 256 + 1))[:size]).digest()


def test_events_come_as_they_are_sent(client: httpx.Client) -> None:
    """A stream of events is passed on one by one: the server sends the next when the one before was seen."""
    seen, who = 0, uuid.uuid4().hex
    with client.stream("GET", f"/events?{who}") as answer:
        for line in answer.iter_lines():
            if line.startswith("data:"):
                seen += 1
                client.get(f"/seen?{who}").raise_for_status()
    assert seen == 3


def test_websockets(url: str, tls: ssl.SSLContext) -> None:
    """Messages go both ways, small and large, and the close is clean."""

    async def talk() -> None:
        async with connect(url.replace("https", "wss") + "/ws", ssl=tls, compression=None) as socket:
            for size in (0, 1, 125, 126, 60_000):
                message = os.urandom(size)
                await socket.send(message)
                assert await asyncio.wait_for(socket.recv(), 20) == message
        assert socket.close_code == 1000

    asyncio.run(talk())


def test_a_visitor_who_does_not_read(sandbox: Any, client: httpx.Client, served: tuple[int, int]) -> None:
    """Holds up the server after a bounded amount, and ends its connection by leaving."""
    with client.stream("GET", "/forever") as answer:
        next(answer.iter_raw(1000))
        seen = -1
        until = time.monotonic() + 60
        while (now := int(sandbox.fs.read_text_file("served/sent") or 0)) != seen:
            seen = now
            assert time.monotonic() < until
            time.sleep(1)
        assert seen < 64 << 20
    until = time.monotonic() + 30
    while not any(entry["name"] == "over" for entry in sandbox.fs.read_dir("served")):
        assert time.monotonic() < until
        time.sleep(0.2)


def test_an_answer_that_breaks_off(client: httpx.Client) -> None:
    """Does not look as if it had ended."""
    with pytest.raises(httpx.RemoteProtocolError):
        client.get("/short")
    assert client.get("/").status_code == 200


def test_what_a_process_listens_on(sandbox: Any, served: tuple[int, int], tls: ssl.SSLContext) -> None:
    """Exposed by pid, whatever its port is."""
    url = sandbox.expose_http(pid=served[0])

    assert httpx.get(f"{url}/x", verify=tls).json()["target"] == "/x"


def test_exposed_before_it_listens(sandbox: Any, served: tuple[int, int], tls: ssl.SSLContext) -> None:
    """502 with a sentence until a server is there; each call gives an address of its own."""
    port = served[1] - 1 if served[1] % 2 else served[1] + 1
    url, other = sandbox.expose_http(port=port), sandbox.expose_http(port=port)
    assert url != other
    answer = httpx.get(url, verify=tls)
    assert answer.status_code == 502
    assert f"port {port} does not answer" in answer.text

    sandbox.fs.remove("port.txt")
    process, _ = serve(sandbox, port)

    assert httpx.get(url, verify=tls).json()["method"] == "GET"
    assert httpx.get(other, verify=tls).json()["method"] == "GET"
    sandbox.spawn("kill", args=[str(process)]).wait()


def test_addresses_that_are_not_reserved(environment: Server, sandbox: Any) -> None:
    """The RPC takes an address that REST has given for this sandbox, and no other."""
    with environment.rest() as rest:
        domain = rest.post(f"/api/v3/sandbox/{sandbox.id}/expose/http", json={}).json()["domain"]
        with DenoDeploy().sandbox.create() as second, pytest.raises(Exception, match="not reserved"):
            second._bridge.run(second._async._rpc.call("exposeHttp", {"domain": domain, "port": 80}))
        for params, said in (
            ({"domain": domain}, "exactly one"),
            ({"domain": domain, "port": 0}, "1 to 65535"),
            ({"domain": domain, "port": 1, "pid": 1}, "exactly one"),
        ):
            with pytest.raises(Exception, match=said):
                sandbox._bridge.run(sandbox._async._rpc.call("exposeHttp", params))
        assert rest.post("/api/v3/sandbox/sbx_loc_00000000000000000000/expose/http", json={}).status_code == 404


def test_a_request_resumes(environment: Server, tls: ssl.SSLContext) -> None:
    """Whoever visits a suspended sandbox has it resumed, and is answered by the server that was there."""
    with DenoDeploy().sandbox.create(timeout="10m") as made, environment.rest() as rest:
        made.fs.write_text_file("http_server.py", PROGRAM)
        _, port = serve(made)
        url = made.expose_http(port=port)
        assert httpx.get(url, verify=tls).status_code == 200
        suspend(rest, made.id)

        answer = httpx.get(f"{url}/again", verify=tls, timeout=90)

        assert answer.json()["target"] == "/again"
        told = rest.get(f"/api/v1/sandboxes/{made.id}/timeline").text
        assert "somebody opened an exposed port" in told
        assert rest.delete(f"/api/v3/sandbox/{made.id}").status_code == 204


def suspend(rest: httpx.Client, sandbox: str) -> None:
    """Have it suspended, and wait until it is."""
    assert rest.post(f"/api/v1/sandboxes/{sandbox}/suspend").status_code == 202
    until = time.monotonic() + 120
    while rest.get(f"/api/v1/sandboxes/{sandbox}").json()["state"] != "suspended":
        assert time.monotonic() < until
        time.sleep(0.2)


@pytest.mark.live
def test_a_killed_gateway_comes_back(real_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor starts another one, which serves the same addresses; the sandbox notices nothing."""
    for name, value in real_server.client_environment().items():
        monkeypatch.setenv(name, value)
    trusting = ssl.create_default_context(cafile=real_server.authority)
    with DenoDeploy().sandbox.create() as made:
        made.fs.write_text_file("http_server.py", PROGRAM)
        _, port = serve(made)
        url = made.expose_http(port=port)
        assert httpx.get(url, verify=trusting, timeout=30).status_code == 200
        before = processes(real_server.data, "manage.py gateway")
        assert before
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + 60
        while True:
            try:
                assert httpx.get(url, verify=trusting, timeout=30).status_code == 200
                break
            except httpx.TransportError:
                assert time.monotonic() < until
                time.sleep(0.3)
        after = processes(real_server.data, "manage.py gateway")
        assert after
        assert not set(after) & set(before)
        # Nothing is left of what it needed for low ports
        status = Path(f"/proc/{after[0]}/status").read_text()
        assert re.findall(r"^Cap(?:Prm|Eff|Inh|Amb):\t0+$", status, re.MULTILINE) == [
            line for line in status.splitlines() if line.startswith(("CapPrm", "CapEff", "CapInh", "CapAmb"))
        ]


def nobody_comes_in(client: httpx.Client) -> bool:
    try:
        return client.get("/").status_code == 404
    except httpx.TransportError:
        return False  # it is just being shut


def test_it_ends_with_the_sandbox(environment: Server, tls: ssl.SSLContext) -> None:
    """Nobody comes in any more, and who was inside is sent away."""
    with DenoDeploy().sandbox.create() as made:
        made.fs.write_text_file("http_server.py", PROGRAM)
        _, port = serve(made)
        url = made.expose_http(port=port)
        with httpx.Client(base_url=url, verify=tls, timeout=20) as client:
            with client.stream("GET", "/forever") as answer:
                pieces = answer.iter_raw(1000)
                next(pieces)
                made.kill()
                with pytest.raises(httpx.TransportError):
                    for _ in pieces:
                        pass
            until = time.monotonic() + 30
            while not nobody_comes_in(client):
                assert time.monotonic() < until
                time.sleep(0.2)
