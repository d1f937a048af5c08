// Deno in a sandbox, and requests from inside it, by the official JavaScript SDK.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Sandbox } from "@deno/sandbox";

const BASE = "http://127.0.0.1:8322";
let sandbox;
let server;
before(async () => {
  sandbox = await Sandbox.create();
  const code = await readFile(new URL("./server.fixture.ts", import.meta.url), "utf8");
  server = await sandbox.deno.run({ code, stdout: "piped", stderr: "null" });
  assert.equal(await server.httpReady, true);
});
after(async () => {
  await sandbox.close();
});

test("code and its input", async () => {
  const code = "console.log(Deno.args, await new Response(Deno.stdin.readable).text())";
  const child = await sandbox.deno.run({ code, scriptArgs: ["a"], stdin: "piped", stdout: "piped" });
  const writer = child.stdin.getWriter();
  await writer.write(new TextEncoder().encode("fed"));
  await writer.close();
  const { status, stdoutText } = await child.output();
  assert.equal(stdoutText, '[ "a" ] fed\n');
  assert.equal(status.code, 0);
  assert.equal(await child.httpReady, false);
});

test("a repl", async () => {
  const repl = await sandbox.deno.repl();
  assert.equal(await repl.eval("const x: number = 2; x + 1"), 3);
  assert.deepEqual(await repl.call("(a, b) => ({ a, b, x })", 1, "zwei"), { a: 1, b: "zwei", x: 2 });
  assert.equal(await repl.eval("undefined"), null);
  await assert.rejects(repl.eval("throw new RangeError('too far')"), (error) => error instanceof RangeError && error.message === "too far");
  await assert.rejects(repl.eval("const = 1"), SyntaxError);
  assert.deepEqual(await Promise.all([1, 2, 3].map((n) => repl.eval(`${n} * 10`))), [10, 20, 30]);
  assert.equal((await repl.eval("'y'.repeat(2_000_000)")).length, 2_000_000);
  await repl.close();
});

test("eval", async () => {
  assert.deepEqual(await sandbox.deno.eval("({ a: [1, null] })"), { a: [1, null] });
});

test("a program that is watched starts anew", async () => {
  await sandbox.fs.writeTextFile("watched.ts", "console.log('first'); setInterval(() => {}, 1000)");
  const child = await sandbox.deno.run({ entrypoint: "watched.ts", watch: true, stdout: "piped", stderr: "null" });
  const restarted = new Promise((resolve) => child.addEventListener("restart", resolve, { once: true }));
  const reader = child.stdout.pipeThrough(new TextDecoderStream()).getReader();
  assert.equal((await reader.read()).value, "first\n");
  await sleep(1000);
  await sandbox.fs.writeTextFile("watched.ts", "console.log('second'); setInterval(() => {}, 1000)");
  assert.equal((await reader.read()).value, "second\n");
  await restarted;
  await child.kill();
  await child.status;
});

test("headers and bodies of a request", async () => {
  const answer = await sandbox.fetch(`${BASE}/echo?q=1`, { method: "POST", body: "straße", headers: { "x-mine": "yes", "content-type": "text/plain" } });
  assert.equal(answer.status, 200);
  assert.deepEqual(answer.headers.getSetCookie(), ["a=1", "b=2"]);
  const seen = await answer.json();
  assert.equal(seen.method, "POST");
  assert.equal(seen.search, "?q=1");
  assert.equal(seen.body, "straße");
  assert.equal(seen.headers["x-mine"], "yes");
  assert.equal(seen.headers["content-type"], "text/plain");
  assert.equal(seen.headers.host, "127.0.0.1:8322");
  const plain = await sandbox.fetch(`${BASE}/echo`, { method: "POST", body: new Uint8Array([97, 98]) });
  const untold = await plain.json();
  assert.deepEqual([untold.body, untold.headers["content-type"]], ["ab", undefined]);
});

test("a process sees the host that was asked for", async () => {
  const seen = await (await server.fetch("https://somewhere.example/echo")).json();
  assert.equal(seen.headers.host, "somewhere.example");
});

test("a compressed body, a large one, and none", async () => {
  const zipped = await sandbox.fetch(`${BASE}/gzip`);
  assert.equal(zipped.headers.get("content-encoding"), null);
  assert.equal((await zipped.text()).length, 100_000);
  const large = new Uint8Array(await (await sandbox.fetch(`${BASE}/large`)).arrayBuffer());
  assert.equal(large.length, 5_000_000);
  assert.ok(large.every((byte) => byte === 7));
  const none = await sandbox.fetch(`${BASE}/none`);
  assert.equal(none.status, 204);
  assert.equal(none.body, null);
});

test("a large request", async () => {
  const body = new Uint8Array(3_000_000).fill(5);
  assert.equal(await (await sandbox.fetch(`${BASE}/count`, { method: "POST", body })).json(), body.length);
});

test("redirects", async () => {
  assert.equal((await (await sandbox.fetch(`${BASE}/redirect`)).json()).search, "?from=redirect");
  const manual = await sandbox.fetch(`${BASE}/redirect`, { redirect: "manual" });
  assert.equal(manual.status, 302);
  assert.equal(manual.headers.get("location"), "/echo?from=redirect");
});

test("a body that is given up, and a request", async () => {
  const leaving = new AbortController();
  const answer = await sandbox.fetch(`${BASE}/slow`, { signal: leaving.signal });
  const reader = answer.body.getReader();
  assert.equal(new TextDecoder().decode((await reader.read()).value).slice(0, 5), "tick\n");
  leaving.abort();
  await assert.rejects(async () => {
    while (!(await reader.read()).done);
  });
  const cancelled = (await sandbox.fetch(`${BASE}/slow`)).body.getReader();
  await cancelled.read();
  await cancelled.cancel(new Error("enough"));
  const output = server.stdout.pipeThrough(new TextDecoderStream()).getReader();
  let said = "";
  while (said.split("left").length < 3) said += (await output.read()).value;
  await assert.rejects(sandbox.fetch("http://127.0.0.1:9/"), TypeError);
});
