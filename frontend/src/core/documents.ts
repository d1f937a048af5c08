/** Open files: tabs in order, which one is shown, what is unsaved, and what changed underneath. */
import { type Files, type Form, MAX_TEXT, sameVersion, type Version } from "./files";
import { base, moved, within } from "./paths";
import { Store } from "./store";

export interface Document extends Form {
  /** Stays the same when the file is renamed. */
  id: number;
  path: string;
  name: string;
  kind: "loading" | "text" | "binary" | "large" | "failed";
  dirty: boolean;
  saving: boolean;
  /** The file is no longer what was read: somebody changed or removed it. */
  underneath: "changed" | "removed" | null;
  version: Version | null;
  size: number;
  problem: string;
  /** Grows whenever the text was read anew, so that an editor knows to take it. */
  revision: number;
}

/** Where the texts live: the editor. */
export interface Texts {
  /** Takes text that was read; `keep` preserves history and cursor as far as possible. */
  load(path: string, text: string, keep: boolean): void;
  /** The text as it is now, with the line ends it was loaded with. */
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
  #next = 1;
  /** Saves under way, by document. */
  #saves = new Map<number, Promise<SaveResult>>();
  #renaming: Promise<void> = Promise.resolve();

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
      id: this.#next++,
      path,
      name: base(path),
      kind: "loading",
      dirty: false,
      saving: false,
      underneath: null,
      version: null,
      lineEnds: "LF",
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

  /** Reads the file again and throws unsaved changes away, but not what is typed while it is read. */
  async reload(path: string): Promise<void> {
    const before = this.get(path);
    if (!before) return;
    const { id } = before;
    const replaced = this.#texts.read(path);
    try {
      const opened = await this.#files.open(path);
      const now = this.#find(id);
      if (!now) return;
      if (now.dirty && this.#texts.read(now.path) !== replaced) this.#patch(id, { underneath: "changed" });
      // Saved or read meanwhile, and either may be the newer one.
      else if (now.version !== before.version) await this.check(now.path);
      else if (opened.kind === "text") {
        const { text, version, lineEnds, bom } = opened;
        this.#texts.load(now.path, text, before.kind === "text");
        this.#patch(id, {
          kind: "text",
          version,
          lineEnds,
          bom,
          size: version.size,
          dirty: false,
          underneath: null,
          problem: "",
          revision: before.revision + 1,
        });
      } else this.#patch(id, { kind: opened.kind, size: opened.size, dirty: false, underneath: null });
    } catch (error) {
      const problem = error instanceof Error ? error.message : String(error);
      if (before.kind === "loading" || before.kind === "failed") this.#patch(id, { kind: "failed", problem });
      else this.#onProblem(`Could not read ${before.name}`, error);
    }
  }

  edited(path: string, dirty: boolean): void {
    const document = this.get(path);
    if (document && document.dirty !== dirty) this.#patch(document.id, { dirty });
  }

  /** Writes the file; `overwrite` does so even if it changed underneath. */
  async save(path: string, overwrite = false): Promise<SaveResult> {
    const document = this.get(path);
    if (document?.kind !== "text" || document.saving) return "nothing";
    const { id } = document;
    this.#patch(id, { saving: true });
    const saving = this.#renaming.then(() => this.#write(id, overwrite));
    this.#saves.set(id, saving);
    try {
      return await saving;
    } finally {
      this.#saves.delete(id);
      this.#patch(id, { saving: false });
    }
  }

  async #write(id: number, overwrite: boolean): Promise<SaveResult> {
    const document = this.#find(id);
    if (!document) return "nothing";
    const { path } = document;
    const text = this.#texts.read(path);
    try {
      const version = await this.#files.save(path, text, document, overwrite ? null : document.version);
      if (version === null) {
        const now = await this.#files.version(path);
        this.#patch(id, { underneath: now === null ? "removed" : "changed" });
        return "conflict";
      }
      if (!this.#find(id)) return "saved";
      this.#texts.saved(path, text);
      this.#patch(id, {
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
    }
  }

  /** Looks whether the file is still the one that was read: a clean one is read again, an edited one is marked. */
  async check(path: string): Promise<void> {
    const document = this.get(path);
    if (!document?.version || document.saving) return;
    const { id } = document;
    const now = await this.#files.version(path);
    const still = this.#find(id);
    // What was asked of the old path says nothing about the new one.
    if (still?.path !== path) return;
    if (!still.version || still.saving || !sameVersion(still.version, document.version)) return;
    if (now === null) this.#patch(id, { underneath: "removed" });
    else if (sameVersion(now, still.version)) this.#patch(id, { underneath: null });
    else if (still.dirty || now.size > MAX_TEXT) this.#patch(id, { underneath: "changed" });
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

  /**
   * Renames a file or directory and takes what is open of it along. A save under way ends first, and one that
   * is asked for meanwhile waits: written by the old name, the text would make the old file anew.
   */
  async rename(from: string, to: string): Promise<void> {
    const saves = [...this.#saves.values()];
    const before = this.#renaming;
    const done = (async () => {
      await Promise.allSettled([before, ...saves]);
      await this.#files.rename(from, to);
      this.#renamed(from, to);
    })();
    this.#renaming = done.catch(() => undefined);
    await done;
  }

  #renamed(from: string, to: string): void {
    for (const { id, path } of this.state.value.open) {
      if (!within(path, from)) continue;
      const target = moved(path, from, to);
      this.#texts.rename(path, target);
      this.state.update(({ open, active }) => ({
        open: open.map((document) =>
          document.id === id ? { ...document, path: target, name: base(target) } : document,
        ),
        active: active === path ? target : active,
      }));
    }
  }

  #find(id: number): Document | undefined {
    return this.state.value.open.find((document) => document.id === id);
  }

  #patch(id: number, change: Partial<Document>): void {
    this.state.update((state) => ({
      ...state,
      open: state.open.map((document) => (document.id === id ? { ...document, ...change } : document)),
    }));
  }
}
