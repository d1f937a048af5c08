/** Files of the guest as the IDE needs them: lists, text with its version, and careful saving. */
import { decodeBase64 } from "./base64";
import { join } from "./paths";
import { CallError, type Calls } from "./rpc";

export const MAX_TEXT = 5_000_000;

export interface Entry {
  name: string;
  directory: boolean;
  link: boolean;
}

/** What a file was when it was read or written; another version means that somebody changed it. */
export interface Version {
  mtime: string;
  size: number;
}

/** "mixed": no one kind ends all lines, so every end is kept as it is. */
export type LineEnds = "LF" | "CRLF" | "CR" | "mixed";

/** How a text is written in its file. */
export interface Form {
  lineEnds: LineEnds;
  bom: boolean;
}

/** `text` has \n line ends, or its own where they are mixed. */
export type Opened =
  | ({ kind: "text"; text: string; version: Version } & Form)
  | { kind: "binary"; size: number }
  | { kind: "large"; size: number };

interface Stat {
  isDirectory: boolean;
  isFile: boolean;
  size: number;
  mtime: string;
}

const order = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

export function sortEntries(entries: Entry[]): Entry[] {
  return entries.toSorted(
    (a, b) => Number(b.directory) - Number(a.directory) || order.compare(a.name, b.name),
  );
}

/** The text of a file, or null if it is not UTF-8 text. */
export function asText(bytes: Uint8Array): string | null {
  if (bytes.subarray(0, 8192).includes(0)) return null;
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return null;
  }
}

/** The text as it is edited, and how to write it back; the inverse of `written`. */
export function edited(raw: string): Form & { text: string } {
  const bom = raw.startsWith("\uFEFF");
  const text = bom ? raw.slice(1) : raw;
  const crlf = text.includes("\r\n");
  const lf = /(?<!\r)\n/.test(text);
  const cr = /\r(?!\n)/.test(text);
  if (Number(crlf) + Number(lf) + Number(cr) > 1) return { text, bom, lineEnds: "mixed" };
  if (crlf) return { text: text.replaceAll("\r\n", "\n"), bom, lineEnds: "CRLF" };
  if (cr) return { text: text.replaceAll("\r", "\n"), bom, lineEnds: "CR" };
  return { text, bom, lineEnds: "LF" };
}

function written(text: string, { lineEnds, bom }: Form): string {
  const lines =
    lineEnds === "CRLF"
      ? text.replaceAll("\n", "\r\n")
      : lineEnds === "CR"
        ? text.replaceAll("\n", "\r")
        : text;
  return bom ? `\uFEFF${lines}` : lines;
}

export function sameVersion(a: Version, b: Version): boolean {
  return a.mtime === b.mtime && a.size === b.size;
}

export class Files {
  #rpc: Calls;

  constructor(rpc: Calls) {
    this.#rpc = rpc;
  }

  /** A directory's entries, directories first; a link counts as what it points to. */
  async list(directory: string): Promise<Entry[]> {
    const raw = await this.#rpc.call<{ name: string; isDirectory: boolean; isSymlink: boolean }[]>(
      "readDir",
      {
        path: directory,
      },
    );
    const entries = await Promise.all(
      raw.map(async ({ name, isDirectory, isSymlink }) => ({
        name,
        link: isSymlink,
        directory: isDirectory || (isSymlink && (await this.#isDirectory(join(directory, name)))),
      })),
    );
    return sortEntries(entries);
  }

  async #isDirectory(path: string): Promise<boolean> {
    try {
      return (await this.stat(path)).isDirectory;
    } catch {
      return false;
    }
  }

  stat(path: string): Promise<Stat> {
    return this.#rpc.call<Stat>("stat", { path });
  }

  /** The version of a file now, or null if it is gone. */
  async version(path: string): Promise<Version | null> {
    try {
      const { mtime, size } = await this.stat(path);
      return { mtime, size };
    } catch (error) {
      if (error instanceof CallError && error.code === "ENOENT") return null;
      throw error;
    }
  }

  async open(path: string): Promise<Opened> {
    const { size, mtime, isDirectory, isFile } = await this.stat(path);
    if (isDirectory) throw new CallError(`${path} is a directory.`, "EISDIR");
    // A device or a FIFO would never end, or never begin.
    if (!isFile) return { kind: "binary", size };
    if (size > MAX_TEXT) return { kind: "large", size };
    const bytes = decodeBase64(await this.#rpc.call<string>("readFile", { path }));
    const raw = asText(bytes);
    if (raw === null) return { kind: "binary", size };
    return { kind: "text", ...edited(raw), version: { mtime, size: bytes.length } };
  }

  /**
   * Writes the text and returns its version; null instead if the file is not as `expected` any more
   * (`expected` null: overwrite whatever is there).
   */
  save(path: string, text: string, form: Form, expected: Version | null): Promise<Version | null> {
    return this.#rpc.call<Version | null>("file.save", { path, content: written(text, form), expected });
  }

  async createFile(path: string): Promise<void> {
    await this.#rpc.call("writeTextFile", { path, content: "", options: { createNew: true } });
  }

  async createDirectory(path: string): Promise<void> {
    await this.#rpc.call("mkdir", { path });
  }

  async rename(from: string, to: string): Promise<void> {
    // rename(2) replaces its target silently; a person renaming a file does not expect that.
    if ((await this.version(to)) !== null) throw new CallError(`${to} exists already.`, "EEXIST");
    await this.#rpc.call("rename", { oldPath: from, newPath: to });
  }

  async remove(path: string): Promise<void> {
    await this.#rpc.call("remove", { path, options: { recursive: true } });
  }
}
