/** Sends files into the machine one after the other, each chunk acknowledged before the next: bounded, with progress. */
import { encodeBase64 } from "./base64";
import { join, parent } from "./paths";
import { CallError, type Calls } from "./rpc";
import { Store } from "./store";

/** A multiple of three, so that base64 pieces have no padding within a file. */
export const CHUNK = 393_216;

export interface Source {
  /** Path below the directory the upload goes to. */
  path: string;
  size: number;
  slice(start: number, end: number): Promise<Uint8Array>;
}

export interface Upload {
  id: number;
  directory: string;
  label: string;
  state: "running" | "done" | "cancelled" | "failed";
  files: number;
  filesDone: number;
  bytes: number;
  bytesDone: number;
  current: string;
  problem: string;
}

export class Uploads {
  readonly state = new Store<readonly Upload[]>([]);
  #rpc: Calls;
  #next = 1;
  #cancelled = new Set<number>();
  #running = 0;
  #queue: Promise<void> = Promise.resolve();

  constructor(rpc: Calls) {
    this.#rpc = rpc;
  }

  /** Uploads after those already under way; resolves when it has ended in some way. */
  add(directory: string, sources: readonly Source[], folders: readonly string[] = []): Promise<Upload> {
    const id = this.#next++;
    const top = new Set(
      [...sources.map((source) => source.path), ...folders].map((path) => path.split("/")[0] ?? path),
    );
    const upload: Upload = {
      id,
      directory,
      label: top.size === 1 ? [...top].join("") : `${top.size} items`,
      state: "running",
      files: sources.length,
      filesDone: 0,
      bytes: sources.reduce((sum, source) => sum + source.size, 0),
      bytesDone: 0,
      current: "",
      problem: "",
    };
    this.state.update((all) => [...all, upload]);
    const done = this.#queue.then((): Upload | Promise<Upload> => {
      // Cancelled before its turn, and perhaps dismissed already.
      if (this.#cancelled.delete(id)) return { ...upload, state: "cancelled" };
      this.#running = id;
      return this.#run(id, directory, sources, folders);
    });
    this.#queue = done.then(() => undefined);
    return done;
  }

  /** Ends an upload at its next chunk, or before its turn; files that are whole by then stay. */
  cancel(id: number): void {
    if (this.#get(id).state !== "running") return;
    this.#cancelled.add(id);
    if (this.#running !== id) this.#patch(id, { state: "cancelled" });
  }

  dismiss(id: number): void {
    this.state.update((all) => all.filter((upload) => upload.id !== id || upload.state === "running"));
  }

  #get(id: number): Upload {
    const upload = this.state.value.find((candidate) => candidate.id === id);
    if (!upload) throw new Error("no such upload");
    return upload;
  }

  #patch(id: number, change: Partial<Upload>): void {
    this.state.update((all) => all.map((upload) => (upload.id === id ? { ...upload, ...change } : upload)));
  }

  async #run(
    id: number,
    directory: string,
    sources: readonly Source[],
    folders: readonly string[],
  ): Promise<Upload> {
    const known = new Set<string>([directory]);
    const made: string[] = [];
    try {
      for (const folder of folders) {
        if (this.#cancelled.has(id)) break;
        await this.#makeDirectory(join(directory, folder), known, made);
      }
      for (const source of sources) {
        if (this.#cancelled.has(id)) break;
        const target = join(directory, source.path);
        this.#patch(id, { current: source.path });
        await this.#makeDirectory(parent(target), known, made);
        if (await this.#send(id, source, target)) this.#patch(id, { filesDone: this.#get(id).filesDone + 1 });
      }
      const cancelled = this.#cancelled.has(id);
      if (cancelled) await this.#removeDirectories(made);
      this.#patch(id, { state: cancelled ? "cancelled" : "done", current: "" });
    } catch (error) {
      this.#patch(id, { state: "failed", problem: error instanceof Error ? error.message : String(error) });
    }
    this.#cancelled.delete(id);
    return this.#get(id);
  }

  /** Makes a folder with those above it; `made` grows by the ones that were not there. */
  async #makeDirectory(path: string, known: Set<string>, made: string[]): Promise<void> {
    if (known.has(path)) return;
    await this.#makeDirectory(parent(path), known, made);
    try {
      await this.#rpc.call("mkdir", { path });
      made.push(path);
    } catch (error) {
      if (!(error instanceof CallError && error.code === "EEXIST")) throw error;
    }
    known.add(path);
  }

  /** Only while they are empty: what has come into them since stays. */
  async #removeDirectories(made: readonly string[]): Promise<void> {
    for (const path of made.toReversed()) await this.#rpc.call("remove", { path }).catch(() => undefined);
  }

  /** Whether the file is there now; it is not if the upload was cancelled before. */
  async #send(id: number, source: Source, target: string): Promise<boolean> {
    // Under another name until it is whole: a broken upload must not leave half a file that looks like one.
    // A short name of its own: one made of the file's could be longer than a name may be.
    const part = join(parent(target), `.${Math.random().toString(36).slice(2, 12)}.upload`);
    const { fileHandleId } = await this.#rpc.call<{ fileHandleId: number }>("open", {
      path: part,
      options: { write: true, create: true, truncate: true },
    });
    let closed = false;
    let whole = false;
    try {
      for (let at = 0; at < source.size && !this.#cancelled.has(id); ) {
        const data = await source.slice(at, Math.min(source.size, at + CHUNK));
        if (data.length === 0)
          throw new CallError(`${source.path} became shorter while it was read.`, "SHORT");
        for (let sent = 0; sent < data.length; ) {
          const { bytesWritten } = await this.#rpc.call<{ bytesWritten: number }>("fileWrite", {
            fileHandleId,
            data: encodeBase64(data.subarray(sent)),
          });
          if (bytesWritten <= 0) throw new CallError("The machine took no more data.", "ENOSPC");
          sent += bytesWritten;
        }
        at += data.length;
        this.#patch(id, { bytesDone: this.#get(id).bytesDone + data.length });
      }
      await this.#rpc.call("fileClose", { fileHandleId });
      closed = true;
      if (this.#cancelled.has(id)) return false;
      await this.#rpc.call("rename", { oldPath: part, newPath: target });
      whole = true;
      return true;
    } finally {
      if (!closed) await this.#rpc.call("fileClose", { fileHandleId }).catch(() => undefined);
      if (!whole) await this.#rpc.call("remove", { path: part }).catch(() => undefined);
    }
  }
}
