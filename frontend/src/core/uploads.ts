/** Sends files into the machine one after the other, each chunk acknowledged before the next: bounded, with progress. */
import { encodeBase64 } from "./base64";
import { base, join, parent } from "./paths";
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
    this.state.update((all) => [
      ...all,
      {
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
      },
    ]);
    const done = this.#queue.then(() => this.#run(id, directory, sources, folders));
    this.#queue = done.then(() => undefined);
    return done;
  }

  cancel(id: number): void {
    this.#cancelled.add(id);
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
    const made = new Set<string>([directory]);
    try {
      for (const folder of folders) await this.#makeDirectory(join(directory, folder), made);
      for (const source of sources) {
        if (this.#cancelled.has(id)) break;
        const target = join(directory, source.path);
        this.#patch(id, { current: source.path });
        await this.#makeDirectory(parent(target), made);
        await this.#send(id, source, target);
        if (!this.#cancelled.has(id)) this.#patch(id, { filesDone: this.#get(id).filesDone + 1 });
      }
      this.#patch(id, { state: this.#cancelled.has(id) ? "cancelled" : "done", current: "" });
    } catch (error) {
      this.#patch(id, { state: "failed", problem: error instanceof Error ? error.message : String(error) });
    }
    this.#cancelled.delete(id);
    return this.#get(id);
  }

  async #makeDirectory(path: string, made: Set<string>): Promise<void> {
    if (made.has(path)) return;
    await this.#rpc.call("mkdir", { path, options: { recursive: true } });
    made.add(path);
  }

  async #send(id: number, source: Source, target: string): Promise<void> {
    // Under another name until it is whole: a broken upload must not leave half a file that looks like one.
    const part = join(parent(target), `.${base(target).slice(0, 200)}.upload`);
    const { fileHandleId } = await this.#rpc.call<{ fileHandleId: number }>("open", {
      path: part,
      options: { write: true, create: true, truncate: true },
    });
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
      whole = !this.#cancelled.has(id);
    } finally {
      await this.#rpc.call("fileClose", { fileHandleId }).catch(() => undefined);
      if (!whole) await this.#rpc.call("remove", { path: part }).catch(() => undefined);
    }
    if (whole) await this.#rpc.call("rename", { oldPath: part, newPath: target });
  }
}
