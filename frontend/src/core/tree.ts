/** The file tree as data: what is loaded, what is open, which rows are seen, and what a key does. */
import type { Entry } from "./files";
import { join, moved, parent, within } from "./paths";
import { Store } from "./store";

export interface Row {
  path: string;
  name: string;
  depth: number;
  directory: boolean;
  link: boolean;
  expanded: boolean;
  loading: boolean;
}

export interface TreeState {
  root: string;
  children: ReadonlyMap<string, readonly Entry[]>;
  expanded: ReadonlySet<string>;
  loading: ReadonlySet<string>;
  errors: ReadonlyMap<string, string>;
  showHidden: boolean;
  focus: string;
}

export function rows(state: TreeState): Row[] {
  const seen: Row[] = [];
  const visit = (directory: string, depth: number): void => {
    for (const entry of state.children.get(directory) ?? []) {
      if (!state.showHidden && entry.name.startsWith(".")) continue;
      const path = join(directory, entry.name);
      const expanded = entry.directory && state.expanded.has(path);
      seen.push({ path, depth, expanded, loading: state.loading.has(path), ...entry });
      // A link to a directory above would unfold without end.
      if (expanded && depth < 64) visit(path, depth + 1);
    }
  };
  visit(state.root, 0);
  return seen;
}

export type KeyAction =
  | { kind: "focus"; path: string }
  | { kind: "expand"; path: string }
  | { kind: "collapse"; path: string }
  | { kind: "open"; path: string }
  | { kind: "rename"; path: string }
  | { kind: "remove"; path: string };

/** What a key means with the focus on `focus`; null if nothing. */
export function keyAction(seen: readonly Row[], focus: string, key: string, page = 12): KeyAction | null {
  const at = seen.findIndex((row) => row.path === focus);
  const row = seen[at];
  const to = (index: number): KeyAction | null => {
    const target = seen[Math.max(0, Math.min(seen.length - 1, index))];
    return target ? { kind: "focus", path: target.path } : null;
  };
  switch (key) {
    case "ArrowDown":
      return to(at + 1);
    case "ArrowUp":
      return to(at < 0 ? 0 : at - 1);
    case "PageDown":
      return to(at + page);
    case "PageUp":
      return to(at - page);
    case "Home":
      return to(0);
    case "End":
      return to(seen.length - 1);
  }
  if (!row) return null;
  switch (key) {
    case "ArrowRight":
      if (!row.directory) return null;
      return row.expanded ? to(at + 1) : { kind: "expand", path: row.path };
    case "ArrowLeft": {
      if (row.expanded) return { kind: "collapse", path: row.path };
      const up = parent(row.path);
      return seen.some((other) => other.path === up) ? { kind: "focus", path: up } : null;
    }
    case "Enter":
    case " ":
      if (!row.directory) return { kind: "open", path: row.path };
      return { kind: row.expanded ? "collapse" : "expand", path: row.path };
    case "F2":
      return { kind: "rename", path: row.path };
    case "Delete":
      return { kind: "remove", path: row.path };
  }
  if (key.length === 1) {
    // Typing a letter goes to the next name that starts with it.
    for (let step = 1; step <= seen.length; step++) {
      const candidate = seen[(at + step) % seen.length];
      if (candidate?.name.toLowerCase().startsWith(key.toLowerCase()))
        return { kind: "focus", path: candidate.path };
    }
  }
  return null;
}

export type Lister = (directory: string) => Promise<Entry[]>;

export class Tree {
  readonly state: Store<TreeState>;
  #list: Lister;

  constructor(root: string, list: Lister, expanded: Iterable<string> = []) {
    this.#list = list;
    this.state = new Store<TreeState>({
      root,
      children: new Map(),
      expanded: new Set(expanded),
      loading: new Set(),
      errors: new Map(),
      showHidden: true,
      focus: "",
    });
  }

  /** Shows another directory's contents. */
  setRoot(root: string): void {
    if (root !== this.state.value.root) this.#change(() => ({ root, focus: "" }));
  }

  /** Directories whose entries are on the screen. */
  get watched(): string[] {
    const { root, expanded, children } = this.state.value;
    return [root, ...[...expanded].filter((path) => children.has(path))];
  }

  async load(directory: string): Promise<void> {
    this.#change((state) => ({ loading: new Set([...state.loading, directory]) }));
    try {
      const entries = await this.#list(directory);
      this.#change((state) => {
        const errors = new Map(state.errors);
        errors.delete(directory);
        return { children: new Map(state.children).set(directory, entries), errors };
      });
    } catch (error) {
      this.#change((state) => ({
        errors: new Map(state.errors).set(directory, error instanceof Error ? error.message : String(error)),
      }));
    } finally {
      this.#change((state) => ({
        loading: new Set([...state.loading].filter((path) => path !== directory)),
      }));
    }
  }

  /** Lists again all that is open; directories that are gone fold away. */
  async refresh(): Promise<void> {
    const { root, expanded } = this.state.value;
    await Promise.all([root, ...expanded].map((directory) => this.load(directory)));
    this.#change((state) => ({
      expanded: new Set([...state.expanded].filter((path) => !state.errors.has(path))),
    }));
  }

  async expand(path: string): Promise<void> {
    this.#change((state) => ({ expanded: new Set([...state.expanded, path]) }));
    await this.load(path);
  }

  collapse(path: string): void {
    this.#change((state) => ({ expanded: new Set([...state.expanded].filter((open) => open !== path)) }));
  }

  focus(path: string): void {
    this.#change(() => ({ focus: path }));
  }

  toggleHidden(): void {
    this.#change((state) => ({ showHidden: !state.showHidden }));
  }

  /** Opens every directory on the way to `path` and focuses it. */
  async reveal(path: string): Promise<void> {
    const { root } = this.state.value;
    if (!within(path, root)) return;
    const above: string[] = [];
    for (let up = parent(path); up !== root && within(up, root); up = parent(up)) above.unshift(up);
    for (const directory of above)
      if (!this.state.value.expanded.has(directory)) await this.expand(directory);
    this.focus(path);
  }

  /** Keeps open what was open below a directory that got another name. */
  rename(from: string, to: string): void {
    this.#change((state) => ({
      expanded: new Set([...state.expanded].map((path) => moved(path, from, to))),
      focus: moved(state.focus, from, to),
    }));
  }

  /** The directory a new thing goes to: the focused one, or that of the focused file. */
  get target(): string {
    const { focus, root } = this.state.value;
    if (!focus) return root;
    const row = rows(this.state.value).find((candidate) => candidate.path === focus);
    if (!row) return root;
    return row.directory ? row.path : parent(row.path);
  }

  #change(change: (state: TreeState) => Partial<TreeState>): void {
    this.state.update((state) => ({ ...state, ...change(state) }));
  }
}
