import { beforeEach, expect, test, vi } from "vitest";
import { decodeBase64, encodeBase64 } from "./base64";
import { Documents } from "./documents";
import { asText, edited, Files, sameVersion, sortEntries, type Version } from "./files";
import { base } from "./paths";
import { CallError, type Calls } from "./rpc";
import { CHUNK, Uploads } from "./uploads";

/** A disk behind the calls a machine answers. */
class Machine implements Calls {
  files = new Map<string, Uint8Array>();
  directories = new Set<string>();
  handles = new Map<number, string>();
  clock = 0;
  times = new Map<string, number>();
  log: string[] = [];
  largest = 0;
  onWrite: () => void = () => {};
  /** What a method waits for before it is answered, by its state at the call. */
  holds = new Map<string, Promise<void>>();

  put(path: string, content: string | Uint8Array): void {
    this.files.set(path, typeof content === "string" ? new TextEncoder().encode(content) : content);
    this.times.set(path, ++this.clock);
  }

  text(path: string): string | undefined {
    const bytes = this.files.get(path);
    return bytes && new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
  }

  version(path: string): Version {
    return { mtime: String(this.times.get(path)), size: this.files.get(path)?.length ?? 0 };
  }

  async call<T>(method: string, params: object): Promise<T> {
    this.log.push(method);
    if (method === "file.save") await this.holds.get(method);
    const answer = this.answer(method, params as Record<string, never>);
    if (method !== "file.save") await this.holds.get(method);
    return answer as T;
  }

  answer(method: string, params: Record<string, never>): unknown {
    const path: string = params.path ?? "";
    const bytes = this.files.get(path);
    if (method === "stat") {
      if (!bytes) throw new CallError("not found", "ENOENT");
      return { isDirectory: false, isFile: true, ...this.version(path) };
    }
    if (method === "readFile") return encodeBase64(bytes ?? new Uint8Array());
    if (method === "file.save") {
      const expected: Version | null = params.expected ?? null;
      if (expected && !(bytes && sameVersion(this.version(path), expected))) return null;
      this.put(path, params.content ?? "");
      return this.version(path);
    }
    if (method === "mkdir") {
      if (this.directories.has(path)) throw new CallError("exists", "EEXIST");
      return this.directories.add(path);
    }
    if (method === "open") {
      this.named(path);
      this.put(path, "");
      this.handles.set(this.handles.size, path);
      return { fileHandleId: this.handles.size - 1 };
    }
    if (method === "fileWrite") {
      const target = this.handles.get(params.fileHandleId ?? -1) ?? "";
      const before = this.files.get(target) ?? new Uint8Array();
      const data = decodeBase64(params.data ?? "");
      this.largest = Math.max(this.largest, data.length);
      const after = new Uint8Array(before.length + data.length);
      after.set(before);
      after.set(data, before.length);
      this.put(target, after);
      this.onWrite();
      return { bytesWritten: data.length };
    }
    if (method === "rename") {
      this.named(params.newPath ?? "");
      this.put(params.newPath ?? "", this.files.get(params.oldPath ?? "") ?? "");
      this.times.set(params.newPath ?? "", this.times.get(params.oldPath ?? "") ?? 0);
      this.files.delete(params.oldPath ?? "");
    }
    if (method === "remove" && this.directories.has(path)) {
      if ([...this.files.keys(), ...this.directories].some((other) => other.startsWith(`${path}/`)))
        throw new CallError("not empty", "ENOTEMPTY");
      this.directories.delete(path);
    } else if (method === "remove") this.files.delete(path);
    return null;
  }

  named(path: string): void {
    if (new TextEncoder().encode(base(path)).length > 255) throw new CallError("too long", "ENAMETOOLONG");
  }

  /** Answers to `method` come no more until what is returned is called. */
  hold(method: string): () => void {
    let release = (): void => {};
    this.holds.set(method, new Promise((resolve) => (release = resolve)));
    return () => {
      this.holds.delete(method);
      release();
    };
  }
}

let machine: Machine;
let texts: Map<string, string>;
let documents: Documents;

beforeEach(() => {
  machine = new Machine();
  texts = new Map();
  documents = new Documents(
    new Files(machine),
    {
      load: (path, text) => texts.set(path, text),
      read: (path) => texts.get(path) ?? "",
      saved: () => {},
      forget: (path) => texts.delete(path),
      rename: (from, to) => {
        texts.set(to, texts.get(from) ?? "");
        texts.delete(from);
      },
    },
    (_what, error) => {
      throw error;
    },
  );
});

function type(path: string, text: string): void {
  texts.set(path, text);
  documents.edited(path, true);
}

test("text is UTF-8 without NUL; anything else is not", () => {
  expect(asText(new TextEncoder().encode("größe 🌊"))).toBe("größe 🌊");
  expect(asText(new Uint8Array([65, 0, 66]))).toBeNull();
  expect(asText(new Uint8Array([0xff, 0xfe, 65]))).toBeNull();
});

test("directories come first, numbers count", () => {
  const entry = (name: string, directory = false) => ({ name, directory, link: false });
  const sorted = sortEntries([entry("f10"), entry("f9"), entry("b", true), entry("A", true)]);
  expect(sorted.map(({ name }) => name)).toEqual(["A", "b", "f9", "f10"]);
});

test("an edited file is saved, with its line ends and mark as they were", async () => {
  machine.put("/a.txt", "\uFEFFone\r\ntwo\r\n");
  await documents.open("/a.txt");
  expect(texts.get("/a.txt")).toBe("one\ntwo\n");
  type("/a.txt", "one\nthree\n");
  expect(await documents.save("/a.txt")).toBe("saved");
  expect(machine.text("/a.txt")).toBe("\uFEFFone\r\nthree\r\n");
  expect(documents.active?.dirty).toBe(false);
});

test("saving over somebody else's change asks first, and overwrites when told to", async () => {
  machine.put("/a.txt", "mine");
  await documents.open("/a.txt");
  type("/a.txt", "mine, edited");
  machine.put("/a.txt", "theirs");
  expect(await documents.save("/a.txt")).toBe("conflict");
  expect(documents.active?.underneath).toBe("changed");
  expect(machine.text("/a.txt")).toBe("theirs");
  expect(await documents.save("/a.txt", true)).toBe("saved");
  expect(machine.text("/a.txt")).toBe("mine, edited");
});

test("a change underneath is taken into a clean tab and marks an edited one", async () => {
  machine.put("/a.txt", "one");
  await documents.open("/a.txt");
  machine.put("/a.txt", "two");
  await documents.check("/a.txt");
  expect(texts.get("/a.txt")).toBe("two");

  type("/a.txt", "edited");
  machine.put("/a.txt", "three");
  await documents.check("/a.txt");
  expect(documents.active?.underneath).toBe("changed");
  expect(texts.get("/a.txt")).toBe("edited");

  machine.files.delete("/a.txt");
  await documents.check("/a.txt");
  expect(documents.active?.underneath).toBe("removed");
});

/** An open file that was changed underneath, while the change is read. */
async function changedAndBeingRead(): Promise<{ release: () => void; checked: Promise<void> }> {
  machine.put("/a.txt", "one");
  await documents.open("/a.txt");
  machine.put("/a.txt", "two");
  const release = machine.hold("readFile");
  const checked = documents.check("/a.txt");
  await vi.waitFor(() => expect(machine.log.filter((method) => method === "readFile").length).toBe(2));
  return { release, checked };
}

test("what is typed while a change is read stays, and is marked", async () => {
  const { release, checked } = await changedAndBeingRead();
  type("/a.txt", "one, typed");
  release();
  await checked;
  expect(texts.get("/a.txt")).toBe("one, typed");
  expect(documents.active).toMatchObject({ dirty: true, underneath: "changed" });
  expect(await documents.save("/a.txt")).toBe("conflict");

  // Whoever then throws it away gets the machine's, but keeps what he types after that.
  const again = machine.hold("readFile");
  const reloaded = documents.reload("/a.txt");
  type("/a.txt", "one, typed on");
  again();
  await reloaded;
  expect(texts.get("/a.txt")).toBe("one, typed on");
  await documents.reload("/a.txt");
  expect(texts.get("/a.txt")).toBe("two");
  expect(documents.active).toMatchObject({ dirty: false, underneath: null });
});

test("what was saved while an older text was read is not replaced by it", async () => {
  const { release, checked } = await changedAndBeingRead();
  type("/a.txt", "mine");
  expect(await documents.save("/a.txt", true)).toBe("saved");
  release();
  await checked;
  expect(texts.get("/a.txt")).toBe("mine");
  expect(documents.active).toMatchObject({ dirty: false, underneath: null });
});

test.each(["a\r\nb\nc\rd", "a\r\nb\r\nc\n", "a\r\rb\r\n"])(
  "mixed line ends are saved as they were: %j",
  async (content) => {
    machine.put("/a.txt", content);
    await documents.open("/a.txt");
    expect(documents.active?.lineEnds).toBe("mixed");
    type("/a.txt", `${texts.get("/a.txt")}e\n`);
    expect(await documents.save("/a.txt")).toBe("saved");
    expect(machine.text("/a.txt")).toBe(`${content}e\n`);
  },
);

test("a text is edited with \\n where all its lines end alike", () => {
  expect(edited("a\nb")).toMatchObject({ text: "a\nb", lineEnds: "LF" });
  expect(edited("a\r\nb\r\n")).toMatchObject({ text: "a\nb\n", lineEnds: "CRLF" });
  expect(edited("a\rb\r")).toMatchObject({ text: "a\nb\n", lineEnds: "CR" });
  expect(edited("")).toMatchObject({ text: "", lineEnds: "LF" });
});

test("a file that is renamed while it is saved is saved by its old name first, and again by the new one", async () => {
  machine.put("/a.txt", "one");
  await documents.open("/a.txt");
  type("/a.txt", "two");
  const release = machine.hold("file.save");
  const saved = documents.save("/a.txt");
  const renamed = documents.rename("/a.txt", "/b.txt");
  release();
  expect(await saved).toBe("saved");
  await renamed;
  expect([...machine.files.keys()]).toEqual(["/b.txt"]);
  expect(machine.text("/b.txt")).toBe("two");
  expect(documents.active).toMatchObject({ path: "/b.txt", saving: false, dirty: false });
  type("/b.txt", "three");
  expect(await documents.save("/b.txt")).toBe("saved");
  expect(machine.text("/b.txt")).toBe("three");
});

test("a save asked for during a rename goes to the new name", async () => {
  machine.put("/a.txt", "one");
  await documents.open("/a.txt");
  type("/a.txt", "two");
  const release = machine.hold("rename");
  const renamed = documents.rename("/a.txt", "/b.txt");
  await vi.waitFor(() => expect(machine.log).toContain("rename"));
  const saved = documents.save("/a.txt");
  release();
  await renamed;
  expect(await saved).toBe("saved");
  expect([...machine.files.keys()]).toEqual(["/b.txt"]);
  expect(machine.text("/b.txt")).toBe("two");
  expect(documents.active).toMatchObject({ saving: false, dirty: false });
});

test("binary and large files are not opened as text", async () => {
  machine.put("/b", new Uint8Array([1, 0, 2]));
  machine.put("/l", new Uint8Array(5_000_001));
  await documents.open("/b");
  expect(documents.active?.kind).toBe("binary");
  await documents.open("/l");
  expect(documents.active?.kind).toBe("large");
  expect(machine.log.filter((method) => method === "readFile").length).toBe(1);
});

test("an upload goes in acknowledged chunks and appears whole under its name", async () => {
  const data = new Uint8Array(CHUNK * 2 + 10).fill(7);
  const uploads = new Uploads(machine);
  const source = {
    path: "dir/big.bin",
    size: data.length,
    slice: async (a: number, b: number) => data.subarray(a, b),
  };
  const done = await uploads.add("/app", [source], ["dir/empty"]);
  expect(done).toMatchObject({ state: "done", filesDone: 1, bytesDone: data.length });
  expect(machine.files.get("/app/dir/big.bin")?.length).toBe(data.length);
  expect([...machine.files.keys()]).toEqual(["/app/dir/big.bin"]);
  expect(machine.largest).toBeLessThanOrEqual(CHUNK);
  expect(machine.directories.has("/app/dir/empty")).toBe(true);
});

test("a cancelled upload leaves nothing behind", async () => {
  const uploads = new Uploads(machine);
  machine.onWrite = () => uploads.cancel(1);
  const source = { path: "x", size: CHUNK * 9, slice: async (a: number, b: number) => new Uint8Array(b - a) };
  expect(await uploads.add("/app", [source])).toMatchObject({ state: "cancelled", filesDone: 0 });
  expect([...machine.files.keys()]).toEqual([]);
});

test("a cancelled upload takes away the folders it made, and only those", async () => {
  machine.directories.add("/app/old");
  const uploads = new Uploads(machine);
  machine.onWrite = () => uploads.cancel(1);
  const source = {
    path: "old/new/deep/x",
    size: CHUNK * 9,
    slice: async (a: number, b: number) => new Uint8Array(b - a),
  };
  expect(await uploads.add("/app", [source], ["empty/inner", "old"])).toMatchObject({ state: "cancelled" });
  expect([...machine.directories]).toEqual(["/app/old"]);
});

test("an upload that is cancelled among its folders makes no more of them", async () => {
  const uploads = new Uploads(machine);
  const release = machine.hold("mkdir");
  const done = uploads.add("/app", [], ["a", "b", "c"]);
  await vi.waitFor(() => expect(machine.log).toEqual(["mkdir"]));
  uploads.cancel(1);
  release();
  expect(await done).toMatchObject({ state: "cancelled" });
  expect(machine.log).toEqual(["mkdir", "remove"]);
  expect([...machine.directories]).toEqual([]);
});

test("an upload that is cancelled before its turn does nothing, and says so at once", async () => {
  const uploads = new Uploads(machine);
  const slice = async (a: number, b: number) => new Uint8Array(b - a);
  const first = uploads.add("/app", [{ path: "x", size: 3, slice }]);
  const second = uploads.add("/app", [{ path: "sub/y", size: 3, slice }], ["folder"]);
  const third = uploads.add("/app", [{ path: "z", size: 3, slice }]);
  uploads.cancel(2);
  expect(uploads.state.value[1]?.state).toBe("cancelled");
  uploads.dismiss(2);
  expect(await first).toMatchObject({ state: "done" });
  expect(await second).toMatchObject({ state: "cancelled", filesDone: 0 });
  expect(await third).toMatchObject({ state: "done" });
  expect([...machine.files.keys()]).toEqual(["/app/x", "/app/z"]);
  expect([...machine.directories]).toEqual([]);
});

test("the longest names can be uploaded", async () => {
  const name = "潮".repeat(85);
  const uploads = new Uploads(machine);
  const slice = async (a: number, b: number) => new Uint8Array(b - a);
  expect(await uploads.add("/app", [{ path: name, size: 3, slice }])).toMatchObject({
    state: "done",
    problem: "",
  });
  expect([...machine.files.keys()]).toEqual([`/app/${name}`]);

  const longer = await uploads.add("/app", [{ path: `${name}x`, size: 3, slice }]);
  expect(longer).toMatchObject({ state: "failed", filesDone: 0 });
  expect([...machine.files.keys()]).toEqual([`/app/${name}`]);
});
