import { beforeEach, expect, test } from "vitest";
import { decodeBase64, encodeBase64 } from "./base64";
import { Documents } from "./documents";
import { asText, Files, sortEntries } from "./files";
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

  put(path: string, content: string | Uint8Array): void {
    this.files.set(path, typeof content === "string" ? new TextEncoder().encode(content) : content);
    this.times.set(path, ++this.clock);
  }

  text(path: string): string | undefined {
    const bytes = this.files.get(path);
    return bytes && new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
  }

  async call<T>(method: string, params: object): Promise<T> {
    this.log.push(method);
    return this.answer(method, params as Record<string, never>) as T;
  }

  answer(method: string, params: Record<string, never>): unknown {
    const path: string = params.path ?? "";
    const bytes = this.files.get(path);
    if (method === "stat") {
      if (!bytes) throw new CallError("not found", "ENOENT");
      return { isDirectory: false, isFile: true, size: bytes.length, mtime: String(this.times.get(path)) };
    }
    if (method === "readFile") return encodeBase64(bytes ?? new Uint8Array());
    if (method === "writeTextFile") return this.put(path, params.content ?? "");
    if (method === "mkdir") return this.directories.add(path);
    if (method === "open") {
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
      this.put(params.newPath ?? "", this.files.get(params.oldPath ?? "") ?? "");
      this.files.delete(params.oldPath ?? "");
    }
    if (method === "remove") this.files.delete(path);
    return null;
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
      rename: () => {},
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
