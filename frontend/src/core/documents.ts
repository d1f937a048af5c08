/** Open files: tabs in order, which one is shown, what is unsaved, and what changed underneath. */
import { type Files, MAX_TEXT, sameVersion, type Version } from "./files";
import { base, moved, within } from "./paths";
import { Store } from "./store";

export interface Document {
  path: string;
  name: string;
  kind: "loading" | "text" | "binary" | "large" | "failed";
  dirty: boolean;
  saving: boolean;
  /** The file is no longer what was read: somebody changed or removed it. */
  underneath: "changed" | "removed" | null;
  version: Version | null;
  crlf: boolean;
  bom: boolean;
  size: number;
  problem: string;
  /** Grows whenever the text was read anew, so that an editor knows to take it. */
  revision: number;
}

/** Where the texts live: the editor. */
export interface Texts {
  /** Takes text that was read; `keep` preserves history and cursor as far as possible. */
  load(path: string, text: string, keep: boolean): void;
  /** The text as it is now, with \n line ends. */
  read(path: string): string;
  /** Marks the present text as the saved one. */
  saved(path: string, text: string): void;
  forget(path: string): void;
  rename(from: string, to: string): void;
}

export interface DocumentsState {
  open: readonly Document[];
  active: string | null;
}

export type SaveResult = "saved" | "conflict" | "failed" | "nothing";

export class Documents {
  readonly state = new Store<DocumentsState>({ open: [], active: null });
  #files: Files;
  #texts: Texts;
  #onProblem: (what: string, error: unknown) => void;

  constructor(files: Files, texts: Texts, onProblem: (what: string, error: unknown) => void) {
    this.#files = files;
    this.#texts = texts;
    this.#onProblem = onProblem;
  }

  get(path: string): Document | undefined {
    return this.state.value.open.find((document) => document.path === path);
  }

  get active(): Document | undefined {
    return this.state.value.active === null ? undefined : this.get(this.state.value.active);
  }

  get dirty(): Document[] {
    return this.state.value.open.filter((document) => document.dirty);
  }

  show(path: string): void {
    this.state.update((state) => ({ ...state, active: path }));
  }

  async open(path: string): Promise<void> {
    if (this.get(path)) {
      this.show(path);
      return;
    }
    const document: Document = {
      path,
      name: base(path),
      kind: "loading",
      dirty: false,
      saving: false,
      underneath: null,
      version: null,
      crlf: false,
      bom: false,
      size: 0,
      problem: "",
      revision: 0,
    };
    this.state.update((state) => {
      const at = state.open.findIndex((other) => other.path === state.active);
      return { open: state.open.toSpliced(at + 1, 0, document), active: path };
    });
    await this.reload(path);
  }

  /** Reads the file again and throws unsaved changes away. */
  async reload(path: string): Promise<void> {
    const before = this.get(path);
    if (!before) return;
    try {
      const opened = await this.#files.open(path);
      if (!this.get(path)) return;
      if (opened.kind === "text") {
        this.#texts.load(
          path,
          opened.crlf ? opened.text.replaceAll("\r\n", "\n") : opened.text,
          before.kind === "text",
        );
        this.#patch(path, {
          kind: "text",
          version: opened.version,
          crlf: opened.crlf,
          bom: opened.bom,
          size: opened.version.size,
          dirty: false,
          underneath: null,
          problem: "",
          revision: before.revision + 1,
        });
      } else this.#patch(path, { kind: opened.kind, size: opened.size, dirty: false, underneath: null });
    } catch (error) {
      const problem = error instanceof Error ? error.message : String(error);
      if (before.kind === "loading" || before.kind === "failed")
        this.#patch(path, { kind: "failed", problem });
      else this.#onProblem(`Could not read ${base(path)}`, error);
    }
  }

  edited(path: string, dirty: boolean): void {
    if (this.get(path)?.dirty !== dirty) this.#patch(path, { dirty });
  }

  /** Writes the file; `overwrite` does so even if it changed underneath. */
  async save(path: string, overwrite = false): Promise<SaveResult> {
    const document = this.get(path);
    if (document?.kind !== "text" || document.saving) return "nothing";
    this.#patch(path, { saving: true });
    const text = this.#texts.read(path);
    try {
      const version = await this.#files.save(path, text, document, overwrite ? null : document.version);
      if (version === null) {
        const now = await this.#files.version(path);
        this.#patch(path, { underneath: now === null ? "removed" : "changed" });
        return "conflict";
      }
      this.#texts.saved(path, text);
      this.#patch(path, {
        version,
        size: version.size,
        underneath: null,
        // Typed on while it was being written.
        dirty: this.#texts.read(path) !== text,
      });
      return "saved";
    } catch (error) {
      this.#onProblem(`Could not save ${document.name}`, error);
      return "failed";
    } finally {
      this.#patch(path, { saving: false });
    }
  }

  /** Looks whether the file is still the one that was read: a clean one is read again, an edited one is marked. */
  async check(path: string): Promise<void> {
    const document = this.get(path);
    if (!document?.version || document.saving) return;
    const now = await this.#files.version(path);
    const still = this.get(path);
    if (!still?.version || still.saving || !sameVersion(still.version, document.version)) return;
    if (now === null) this.#patch(path, { underneath: "removed" });
    else if (sameVersion(now, still.version)) this.#patch(path, { underneath: null });
    else if (still.dirty || now.size > MAX_TEXT) this.#patch(path, { underneath: "changed" });
    else await this.reload(path);
  }

  async checkAll(): Promise<void> {
    await Promise.allSettled(this.state.value.open.map((document) => this.check(document.path)));
  }

  close(path: string): void {
    this.state.update(({ open, active }) => {
      const at = open.findIndex((document) => document.path === path);
      const rest = open.filter((document) => document.path !== path);
      const next = active === path ? (rest[Math.min(at, rest.length - 1)]?.path ?? null) : active;
      return { open: rest, active: next };
    });
    this.#texts.forget(path);
  }

  /** The neighbour's tab, going around. */
  cycle(step: 1 | -1): void {
    const { open, active } = this.state.value;
    const at = open.findIndex((document) => document.path === active);
    const next = open[(at + step + open.length) % open.length];
    if (next) this.show(next.path);
  }

  renamed(from: string, to: string): void {
    for (const { path } of this.state.value.open) {
      if (!within(path, from)) continue;
      const target = moved(path, from, to);
      this.#texts.rename(path, target);
      this.state.update(({ open, active }) => ({
        open: open.map((document) =>
          document.path === path ? { ...document, path: target, name: base(target) } : document,
        ),
        active: active === path ? target : active,
      }));
    }
  }

  #patch(path: string, change: Partial<Document>): void {
    this.state.update((state) => ({
      ...state,
      open: state.open.map((document) => (document.path === path ? { ...document, ...change } : document)),
    }));
  }
}
