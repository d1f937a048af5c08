"""Deno in a sandbox, and requests from inside it, by the official Python SDK; JavaScript's are in js/deno.test.mjs."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deno_sandbox import DenoDeploy
from deno_sandbox.errors import ProcessAlreadyExited

from tests.sdk.conftest import Server
from tests.sdk.test_javascript import modules, node  # noqa: F401 (a fixture)

pytestmark = [pytest.mark.sdk, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

# In one program, so that one start serves many tests: what is asked for decides what is answered
SERVER = """
const gzipped = new Response(new Blob(["x".repeat(100_000)]).stream().pipeThrough(new CompressionStream("gzip")));
const zipped = await gzipped.bytes();
Deno.serve({ port: 8321, hostname: "127.0.0.1" }, async (request) => {
  const { pathname, search } = new URL(request.url);
  if (pathname === "/echo") {
    const headers = Object.fromEntries(request.headers);
    const body = await request.text();
    const cookies = [["set-cookie", "a=1"], ["set-cookie", "b=2"]];
    return Response.json({ method: request.method, search, headers, body }, { headers: cookies });
  }
  if (pathname === "/gzip") return new Response(zipped, { headers: { "content-encoding": "gzip" } });
  if (pathname === "/redirect") {
    return new Response(null, { status: 302, headers: { location: "/echo?from=redirect" } });
  }
  if (pathname === "/none") return new Response(null, { status: 204 });
  if (pathname === "/large") return new Response(new Uint8Array(5_000_000).fill(7));
  if (pathname === "/count") {
    let size = 0;
    for await (const chunk of request.body ?? []) size += chunk.length;
    return Response.json(size);
  }
  if (pathname === "/slow") {
    let timer;
    return new Response(new ReadableStream({
      start(controller) { timer = setInterval(() => controller.enqueue(new TextEncoder().encode("tick\\n")), 50); },
      cancel() { clearInterval(timer); console.log("left"); },
    }));
  }
  return new Response("not here", { status: 404, statusText: "Not Found" });
});
"""


@pytest.fixture(scope="module")
def sandbox(server: Server) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.client_environment().items():
            patch.setenv(name, value)
        with DenoDeploy().sandbox.create() as made:
            yield made


@pytest.fixture(scope="module")
def serving(sandbox: Any) -> Iterator[Any]:
    """A server in the sandbox, which listens."""
    process = sandbox.deno.run(code=SERVER, stdout="null", stderr="null")
    assert process.wait_http_ready() is True
    yield process
    sandbox.spawn("kill", args=[str(process.pid)]).wait()


def ran(sandbox: Any, **options: Any) -> tuple[str, str, Any]:
    process = sandbox.deno.run(stdout="piped", stderr="piped", **options)
    out, err = process.stdout.read().decode(), process.stderr.read().decode()
    return out, err, process.wait()


def test_code_runs_with_arguments_input_and_permissions(sandbox: Any) -> None:
    """As TypeScript by default, in the working directory; a program's end and its errors are told."""
    sandbox.fs.write_text_file("beside.ts", "export const beside: string = 'imported';")
    code = """
        import { beside } from "./beside.ts";
        const name: string = await new Response(Deno.stdin.readable).text();
        console.log(beside, name, Deno.args.join("+"), Deno.readTextFileSync("/etc/hostname").length > 0);
        Deno.exit(5);
    """
    out, err, status = ran(sandbox, code=code, script_args=["a", "--b"], stdin_data=["ünï".encode()])
    assert (out, status["code"]) == ("imported ünï a+--b true\n", 5), err
    out, err, status = ran(sandbox, code="throw new Error('broken')")
    assert status["code"] == 1
    assert "broken" in err


def test_extensions(sandbox: Any) -> None:
    """JavaScript, CommonJS and JSX are what they say."""
    assert ran(sandbox, code="console.log(typeof require)", extension="cjs")[0] == "function\n"
    jsx = "/** @jsx h */\nconst h = (name: string) => name;\nconsole.log(<b />);"
    assert ran(sandbox, code=jsx, extension="tsx")[0] == "b\n"
    assert ran(sandbox, code="const x: number = 1", extension="js")[2]["code"] == 1


def test_long_code(sandbox: Any) -> None:
    """Longer than an argument may be: it runs, and nothing of it is left."""
    code = f"const long = '{'x' * 200_000}'; console.log(long.length)"
    out, err, status = ran(sandbox, code=code)
    assert (out, status["code"]) == ("200000\n", 0), err
    until = time.monotonic() + 10
    while any(entry["name"].startswith("deno-") for entry in sandbox.fs.read_dir("/tmp")):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_program_runs_from_its_file(sandbox: Any) -> None:
    """With flags of the runtime before it, its arguments behind, and an environment of its own."""
    sandbox.fs.mkdir("program")
    sandbox.fs.write_text_file(
        "program/main.ts", "console.log(import.meta.main, Deno.args, Deno.env.get('NAME'), location.href)"
    )
    out, err, status = ran(
        sandbox,
        entrypoint="main.ts",
        cwd="program",
        args=["--location=http://there/"],
        script_args=["one"],
        env={"NAME": "value"},
    )
    assert (out, status["code"]) == ('true [ "one" ] value http://there/\n', 0), err


def test_a_program_that_does_not_serve_says_so(sandbox: Any) -> None:
    """False once it has ended."""
    process = sandbox.deno.run(code="console.log('no server')", stdout="null", stderr="null")
    assert process.wait_http_ready() is False
    assert process.wait()["success"] is True


def test_a_repl_keeps_its_state(sandbox: Any) -> None:
    """Values come as they are; functions are called by name and as expressions; what is thrown is told."""
    with sandbox.deno.repl() as repl:
        assert repl.eval("const list: number[] = [1, 2]; list") == [1, 2]
        assert repl.eval("list.push(3); ({ list, at: await Promise.resolve('é') })") == {"list": [1, 2, 3], "at": "é"}
        assert repl.eval("undefined") is None
        repl.eval("async function sum(a: number, b: number) { return a + b + list.length }")
        assert repl.call("sum", [1, 2]) == 6
        assert repl.call("(text) => text.toUpperCase()", ["straße"]) == "STRASSE"
        with pytest.raises(Exception, match="too far"):
            repl.eval("throw new RangeError('too far')")
        with pytest.raises(Exception, match="SyntaxError"):
            repl.eval("this is not code")
        assert repl.eval("list.length") == 3
        pid = repl.pid
    with pytest.raises(ProcessAlreadyExited):
        sandbox._async._rpc and sandbox._bridge.run(sandbox._async._rpc.call("denoReplClose", {"pid": pid}))


def test_eval(sandbox: Any) -> None:
    assert sandbox.deno.eval("[Deno.version.deno.split('.')[0], 6 * 7]") == ["2", 42]


def test_a_process_is_fetched_whatever_the_host(sandbox: Any, serving: Any) -> None:
    """Its server sees the host that was asked for, and answers; nothing of it leaves the sandbox."""
    answer = serving.fetch("https://somewhere.example:8443/echo?x=1", headers={"x-mine": "1"})
    assert (answer.status_code, dict(answer.headers)["content-type"]) == (200, "application/json")
    assert serving.fetch("http://localhost/missing").status_code == 404


def test_fetch_from_inside(sandbox: Any, serving: Any) -> None:
    """From the sandbox's own network: its loopback; redirects as asked; nobody there is an error that says so."""
    base = "http://127.0.0.1:8321"
    assert sandbox.fetch(f"{base}/redirect").status_code == 200
    assert sandbox.fetch(f"{base}/redirect", redirect="manual").status_code == 302
    assert sandbox.fetch(f"{base}/none").status_code == 204
    assert sandbox.fetch(f"{base}/echo", method="HEAD").status_code == 200
    for url, why in (
        ("http://127.0.0.1:9/", "Connection refused"),
        ("ftp://x/", "Invalid URL"),
        ("nonsense", "Invalid URL"),
    ):
        with pytest.raises(Exception, match=why):
            sandbox.fetch(url)


def test_the_javascript_sdk(server: Server, modules: Path) -> None:  # noqa: F811
    """Every promise of its suite holds."""
    server_file = modules.parents[2] / "server.fixture.ts"
    server_file.write_text(SERVER.replace("8321", "8322"))  # guests of a node in memory share this host
    try:
        out = node(server, "--test", "--test-reporter=spec", "deno.test.mjs", timeout=400)
    finally:
        server_file.unlink()
    found = re.search(r"pass (\d+)", out)
    assert found is not None
    assert int(found[1]) >= 10
