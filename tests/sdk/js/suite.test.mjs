// The official JavaScript SDK, unmodified, against the server that DENO_SANDBOX_ENDPOINT names.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { mkdtemp, mkdir, readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Client, KillController, Sandbox, SandboxCommandError } from "@deno/sandbox";

// What an earlier run left is listed for a day
const suite = `javascript-${randomBytes(4).toString("hex")}`;
let sandbox;
before(async () => {
  sandbox = await Sandbox.create({ env: { GREETING: "hello" }, labels: { suite } });
});
after(async () => {
  await sandbox.close();
});

const bytes = (n) => new Uint8Array(randomBytes(n));
const equal = (a, b) => assert.equal(Buffer.compare(Buffer.from(a), Buffer.from(b)), 0);

test("shell commands", async () => {
  assert.equal(await sandbox.sh`echo $GREETING`.text(), "hello\n");
  assert.deepEqual(await sandbox.sh`echo '{"count": 42}'`.json(), { count: 42 });
  await assert.rejects(async () => await sandbox.sh`exit 42`, (error) => error instanceof SandboxCommandError && error.code === 42);
  const result = await sandbox.sh`exit 1`.noThrow();
  assert.equal(result.status.code, 1);
  assert.equal(result.status.success, false);
});

test("secrets", async () => {
  const value = "v4lue-of-the-javascript-sdk";
  const secrets = { API_KEY: { hosts: ["api.example.com"], value } };
  const made = await Sandbox.create({ secrets, env: { OTHER: "1", API_KEY: "the secret goes first" } });
  try {
    const placeholder = await made.env.get("API_KEY");
    assert.match(placeholder, /^DENO_SECRET_PLACEHOLDER_[0-9a-f]{32,}$/);
    const all = await made.env.toObject();
    assert.equal(all.API_KEY, placeholder);
    assert.equal(all.OTHER, "1");
    assert.equal(await made.sh`echo $API_KEY`.text(), `${placeholder}\n`);
    assert.ok(!(await made.sh`env`.text()).includes(value));
  } finally {
    await made.close();
  }
  await assert.rejects(Sandbox.create({ secrets: { API_KEY: { hosts: [], value } } }), (error) => {
    assert.match(error.message, /at least one is needed/);
    return !error.message.includes(value);
  });
});

test("an exposed port", async () => {
  const program = 'require("http").createServer((q, s) => s.end(`${q.method} ${q.url}`)).listen(8123, () => console.log("up"))';
  const child = await sandbox.spawn("node", { args: ["-e", program], stdout: "piped" });
  const reader = child.stdout.getReader();
  await reader.read();
  reader.releaseLock();
  for (const target of [{ port: 8123 }, { pid: child.pid }]) {
    const url = await sandbox.exposeHttp(target);
    assert.match(url, /^https:\/\//);
    assert.equal(await (await fetch(`${url}/a?b`, { method: "POST", body: "x" })).text(), "POST /a?b");
  }
  await child.kill();
});

test("an exposed login", async () => {
  const { hostname, username } = await sandbox.exposeSsh();
  assert.equal(hostname, "127.0.0.1");
  assert.match(username, /^[a-z][0-9a-z]{31}$/);
});

test("apps and layers", async () => {
  const client = new Client();
  const mark = crypto.randomUUID().slice(0, 8);
  const layer = await client.layers.create({ slug: `${mark}-base`, env_vars: [{ key: "A", value: "1" }] });
  assert.equal(layer.app_count, 0);
  const made = [];
  for (const number of [0, 1, 2]) {
    made.push(await client.apps.create({ slug: `${mark}-${number}`, labels: { mark }, layers: [layer.slug] }));
  }
  const [app] = made;
  const changed = await client.apps.update(app.slug, {
    env_vars: [{ key: "TOKEN", value: "v4lue", secret: true, contexts: ["production"] }],
    config: { runtime: { type: "dynamic", entrypoint: "main.ts" } },
  });
  assert.deepEqual(changed.layers, [{ id: layer.id, slug: layer.slug }]);
  assert.ok(!("value" in changed.env_vars[0]));
  assert.deepEqual(await client.apps.get(app.id), changed);
  const listed = [];
  for await (const one of await client.apps.list({ limit: 2, labels: { mark } })) listed.push(one.slug);
  assert.deepEqual(listed, [`${mark}-2`, `${mark}-1`, `${mark}-0`]);
  const users = [];
  for await (const one of await client.layers.apps(layer.id, { limit: 2 })) users.push(one.layer_position);
  assert.deepEqual(users, [0, 0, 0]);
  await assert.rejects(client.layers.delete(layer.id), (error) => error.status === 409 && error.code === "CONFLICT");
  await assert.rejects(client.apps.create({ slug: app.slug }), (error) => error.code === "SLUG_ALREADY_IN_USE");
  for (const one of made) await client.apps.delete(one.id);
  assert.equal(await client.apps.get(app.slug), null);
  await client.layers.delete(layer.slug);
  assert.equal(await client.layers.get(layer.slug), null);
});

test("deploys are not available yet, and the error says so", async () => {
  const client = new Client();
  const app = await client.apps.create();
  try {
    assert.deepEqual((await client.revisions.list(app.slug)).items, []);
    assert.deepEqual((await client.timelines.list(app.slug)).items, []);
    assert.equal(await client.revisions.get("none"), null);
    await assert.rejects(client.revisions.cancel("none"), (error) => error.status === 404);
    for (const call of [
      () => client.apps.deploy(app.slug, { assets: {} }),
      () => client.apps.logs(app.slug, { start: new Date(0).toISOString() }),
    ]) {
      await assert.rejects(call, (error) => {
        assert.equal(error.status, 501);
        assert.equal(error.code, "NOT_AVAILABLE");
        assert.match(error.message, /does not deploy apps yet/);
        return true;
      });
    }
    await assert.rejects(sandbox.deno.deploy(app.slug), /501/);
  } finally {
    await client.apps.delete(app.id);
  }
});

test("volumes", async () => {
  const client = new Client();
  const slug = `js-${crypto.randomUUID().slice(0, 8)}`;
  const volume = await client.volumes.create({ slug, region: "ord", capacity: "1GB" });
  const { id } = volume;
  assert.match(id, /^vol_[a-z]{3}_[0-9a-hjkmnp-z]{20}$/);
  assert.ok(volume.estimatedAllocatedSize > 0);
  assert.ok(volume.estimatedFlattenedSize >= volume.estimatedAllocatedSize);
  assert.deepEqual([volume.slug, volume.capacity, volume.isBootable], [slug, 1_000_000_000, false]);
  assert.ok(!volume.baseSnapshot);
  assert.equal((await client.volumes.get(slug)).id, id);
  const seen = [];
  for await (const one of await client.volumes.list({ limit: 1, search: slug })) seen.push(one.id);
  assert.deepEqual(seen, [id]);
  await assert.rejects(client.volumes.create({ slug, region: "ord", capacity: "1GB" }), (error) => {
    return error.status === 409 && error.code === "SLUG_ALREADY_IN_USE";
  });
  const taken = await client.volumes.snapshot(id, { slug: `${slug}-s` });
  assert.equal(taken.slug, `${slug}-s`);
  assert.equal((await client.snapshots.get(taken.id)).volume.slug, slug);
  const listed = [];
  for await (const one of await client.snapshots.list({ search: slug })) listed.push(one.id);
  assert.deepEqual(listed, [taken.id]);
  await client.snapshots.delete(taken.slug);
  assert.equal(await client.snapshots.get(taken.id), null);
  await client.volumes.delete(id);
  assert.equal(await client.volumes.get(id), null);
});

test("spawn with all streams piped", async () => {
  const child = await sandbox.spawn("cat", { stdin: "piped", stdout: "piped", stderr: "piped" });
  const data = bytes(3_000_000);
  const feed = (async () => {
    const writer = child.stdin.getWriter();
    for (let at = 0; at < data.length; at += 50_000) await writer.write(data.subarray(at, at + 50_000));
    await writer.close();
  })();
  const output = await child.output();
  await feed;
  equal(output.stdout, data);
  assert.deepEqual(output.status, { success: true, code: 0, signal: null, oom: false });
});

test("null streams and exit by signal", async () => {
  const child = await sandbox.spawn("sh", { args: ["-c", "kill -KILL $$"], stdout: "null", stderr: "null" });
  assert.equal(child.stdout, null);
  const status = await child.status;
  assert.equal(status.code, 137);
  assert.equal(status.signal, "SIGKILL");
});

test("output of processes that end at once", async () => {
  for (let i = 0; i < 20; i++) assert.equal(await sandbox.sh`echo ${i}`.text(), `${i}\n`);
});

test("5 MB of output", async () => {
  const child = await sandbox.spawn("head", { args: ["-c", "5000000", "/dev/zero"], stdout: "piped" });
  assert.equal((await child.output()).stdout.length, 5_000_000);
});

test("a reader that stops early leaves the process running", async () => {
  const child = await sandbox.spawn("sh", {
    args: ["-c", "head -c 3000000 /dev/zero; echo done > early.txt"],
    stdout: "piped",
  });
  const reader = child.stdout.getReader();
  await reader.read();
  await reader.cancel(new Error("enough"));
  assert.equal((await child.status).success, true);
  assert.equal(await sandbox.fs.readTextFile("early.txt"), "done\n");
});

test("kill controller", async () => {
  const controller = new KillController();
  setTimeout(() => controller.kill(), 500);
  const began = Date.now();
  // No further modifier after signal(): this version of the SDK forgets it then.
  await assert.rejects(async () => await sandbox.sh`sleep 30; true`.signal(controller.signal));
  assert.ok(Date.now() - began < 20_000);
});

test("killing a process that has ended is no error", async () => {
  const child = await sandbox.spawn("true");
  await child.status;
  await child.kill();
});

test("no such command", async () => {
  await assert.rejects(sandbox.spawn("no-such-command"), (error) => error.code === "ENOENT");
});

test("whole files", async () => {
  const data = bytes(2_000_000);
  await sandbox.fs.writeFile("data.bin", data);
  equal(await sandbox.fs.readFile("data.bin"), data);
  await sandbox.fs.writeTextFile("text.txt", "héllo → 😀");
  assert.equal(await sandbox.fs.readTextFile("text.txt"), "héllo → 😀");
  await sandbox.fs.writeFile("empty", new Uint8Array());
  assert.equal((await sandbox.fs.readFile("empty")).length, 0);
});

test("write options", async () => {
  await sandbox.fs.writeTextFile("opt", "a");
  await sandbox.fs.writeTextFile("opt", "b", { append: true, mode: 0o600 });
  assert.equal(await sandbox.fs.readTextFile("opt"), "ab");
  assert.equal((await sandbox.fs.stat("opt")).mode & 0o777, 0o600);
  await assert.rejects(sandbox.fs.writeTextFile("opt", "c", { createNew: true }), (e) => e.code === "EEXIST");
  await assert.rejects(sandbox.fs.writeTextFile("none", "c", { create: false }), (e) => e.code === "ENOENT");
});

test("writing from a slow stream", async () => {
  const stream = new ReadableStream({
    async start(controller) {
      for (let i = 0; i < 5; i++) {
        await sleep(100);
        controller.enqueue(new Uint8Array(1000).fill(65 + i));
      }
      controller.close();
    },
  });
  await sandbox.fs.writeFile("slow", stream);
  assert.equal((await sandbox.fs.stat("slow")).size, 5000);
});

test("writing from a large stream", async () => {
  let left = 300;
  const stream = new ReadableStream({
    pull(controller) {
      if (left-- > 0) controller.enqueue(new Uint8Array(100_000));
      else controller.close();
    },
  });
  await sandbox.fs.writeFile("large", stream);
  assert.equal((await sandbox.fs.stat("large")).size, 30_000_000);
});

test("a stream that fails fails its file", async () => {
  const stream = new ReadableStream({
    start(controller) {
      controller.error(new Error("no more"));
    },
  });
  await assert.rejects(sandbox.fs.writeFile("failed", stream));
});

test("writing to a directory fails although a stream is coming", async () => {
  await sandbox.fs.mkdir("directory");
  const stream = new ReadableStream({
    async pull(controller) {
      await sleep(1);
      controller.enqueue(new Uint8Array(10_000));
    },
  });
  await assert.rejects(sandbox.fs.writeFile("directory", stream), (e) => e.code === "EISDIR");
});

test("aborting a write", async () => {
  const endless = new ReadableStream({
    async pull(controller) {
      await sleep(50);
      controller.enqueue(new Uint8Array(10));
    },
  });
  await assert.rejects(
    sandbox.fs.writeFile("aborted", endless, { signal: AbortSignal.timeout(500) }),
    (error) => error.name === "AbortError",
  );
});

test("missing files", async () => {
  for (const call of [
    () => sandbox.fs.readFile("nope"),
    () => sandbox.fs.stat("nope"),
    () => sandbox.fs.remove("nope"),
    () => sandbox.fs.open("nope"),
  ]) {
    await assert.rejects(call(), (error) => error.code === "ENOENT");
  }
});

test("directories, links and metadata", async () => {
  await sandbox.fs.mkdir("d/e", { recursive: true });
  await sandbox.fs.writeTextFile("d/f", "12345");
  const names = [];
  for await (const entry of sandbox.fs.readDir("d")) names.push(`${entry.name}:${entry.isDirectory}`);
  assert.deepEqual(names.sort(), ["e:true", "f:false"]);
  await sandbox.fs.symlink("f", "d/soft");
  assert.equal(await sandbox.fs.readLink("d/soft"), "f");
  assert.equal((await sandbox.fs.lstat("d/soft")).isSymlink, true);
  await sandbox.fs.link("d/f", "d/hard");
  assert.equal((await sandbox.fs.stat("d/hard")).nlink, 2);
  assert.ok((await sandbox.fs.realPath("d/soft")).endsWith("/d/f"));
  await sandbox.fs.copyFile("d/f", "d/g");
  await sandbox.fs.rename("d/g", "d/h");
  await sandbox.fs.chmod("d/h", 0o640);
  await sandbox.fs.truncate("d/h", 2);
  const when = new Date("2020-01-02T03:04:05Z");
  await sandbox.fs.utime("d/h", when, when);
  const info = await sandbox.fs.stat("d/h");
  assert.deepEqual([info.mode & 0o777, info.size, info.mtime.toISOString()], [0o640, 2, when.toISOString()]);
  if (info.uid) await assert.rejects(sandbox.fs.chown("d/h", 0, 0), (error) => error.code === "EPERM");
  else {
    // The node in memory runs its guests as root.
    await sandbox.fs.chown("d/h", 12, 34);
    const { uid, gid } = await sandbox.fs.stat("d/h");
    assert.deepEqual([uid, gid], [12, 34]);
  }
  const before = await sandbox.fs.umask(0o077);
  assert.equal(await sandbox.fs.umask(before), 0o077);
  await sandbox.fs.remove("d", { recursive: true });
  const directory = await sandbox.fs.makeTempDir({ prefix: "pre-", suffix: "-post" });
  assert.match(directory, /^\/tmp\/pre-.*-post$/);
  assert.equal((await sandbox.fs.stat(await sandbox.fs.makeTempFile({ dir: directory }))).isFile, true);
});

test("walk and glob", async () => {
  await sandbox.fs.mkdir("tree/sub", { recursive: true });
  for (const name of ["tree/a.json", "tree/sub/b.json", "tree/c.txt"]) await sandbox.fs.writeTextFile(name, "");
  const walked = [];
  for await (const entry of sandbox.fs.walk("tree")) walked.push(entry.path);
  assert.deepEqual(walked.sort(), ["tree", "tree/a.json", "tree/c.txt", "tree/sub", "tree/sub/b.json"]);
  const matched = [];
  for await (const entry of sandbox.fs.walk("tree", { match: [/\.JSON$/i], includeDirs: false })) matched.push(entry.name);
  assert.deepEqual(matched.sort(), ["a.json", "b.json"]);
  const globbed = [];
  for await (const entry of sandbox.fs.expandGlob("tree/**/*.json")) globbed.push(entry.name);
  assert.deepEqual(globbed.sort(), ["a.json", "b.json"]);
});

test("file handles", async () => {
  const file = await sandbox.fs.create("handle");
  assert.equal(await file.write(new TextEncoder().encode("0123456789")), 10);
  assert.equal(await file.seek(2n, 0), 2);
  const buffer = new Uint8Array(3);
  assert.equal(await file.read(buffer), 3);
  assert.equal(new TextDecoder().decode(buffer), "234");
  await file.truncate(5);
  await file.lock(true);
  await file.unlock();
  await file.sync();
  await file.syncData();
  const [atime, mtime] = [new Date("2019-01-02T03:04:05Z"), new Date("2020-01-02T03:04:05Z")];
  await file.utime(atime, mtime);
  const info = await file.stat();
  assert.deepEqual([info.size, info.atime, info.mtime], [5, atime, mtime]);
  assert.equal(await file.read(buffer), null);
  await file.close();
  const again = await sandbox.fs.open("handle");
  const pieces = [];
  for await (const piece of again.readable) pieces.push(...piece);
  assert.equal(pieces.length, 5);
});

test("environment", async () => {
  await sandbox.env.set("API_KEY", "secret-key-123");
  assert.equal(await sandbox.env.get("API_KEY"), "secret-key-123");
  assert.equal(await sandbox.sh`echo $API_KEY`.text(), "secret-key-123\n");
  assert.equal((await sandbox.env.toObject()).API_KEY, "secret-key-123");
  await sandbox.env.delete("API_KEY");
  assert.equal((await sandbox.env.get("API_KEY")) ?? null, null);
});

test("upload and download", async () => {
  const local = await mkdtemp(join(tmpdir(), "atoll-js-"));
  await mkdir(join(local, "up"));
  await writeFile(join(local, "up", "one.txt"), "1");
  await sandbox.fs.upload(join(local, "up"), ".");
  assert.equal(await sandbox.fs.readTextFile("up/one.txt"), "1");
  await sandbox.fs.download("up/one.txt", join(local, "down.txt"));
  assert.equal(await readFile(join(local, "down.txt"), "utf8"), "1");
});

test("two sandboxes in one process do not mix their streams", async () => {
  const other = await Sandbox.create();
  try {
    const texts = await Promise.all(
      Array.from({ length: 10 }, (_, i) => (i % 2 ? other : sandbox).sh`echo ${i}; sleep 0.1; echo ${i}`.text()),
    );
    assert.deepEqual(texts, Array.from({ length: 10 }, (_, i) => `${i}\n${i}\n`));
  } finally {
    await other.close();
  }
});

test("timeouts, reconnecting, extending, killing", async () => {
  const first = await Sandbox.create({ timeout: "10m" });
  await first.fs.writeTextFile("kept", "yes");
  await first.close();
  const again = await Sandbox.connect(first.id);
  assert.equal(again.id, first.id);
  assert.equal(await again.fs.readTextFile("kept"), "yes");
  assert.ok((await again.extendTimeout("20m")).getTime() > Date.now() + 19 * 60_000);
  const listed = await new Client().sandboxes.list();
  assert.equal(listed.find((item) => item.id === first.id).status, "running");
  await again.kill();
  await assert.rejects(Sandbox.connect(first.id), (error) => error.status === 404);
});

test("the list can be filtered by labels", async () => {
  const list = await new Client().sandboxes.list({ labels: { suite } });
  assert.deepEqual(list.map((item) => item.id), [sandbox.id]);
});

test("a wrong token is told as such", async () => {
  await assert.rejects(Sandbox.create({ token: "ddo_wrong" }), (error) => error.constructor.name === "InvalidTokenError");
});

test("what the server does not have is Method not found", async () => {
  await assert.rejects(sandbox.exposeVscode(), /Method not found/);
});
