/** Which terminals a page shows, remembered so that a reload comes back to the same shells. */
import { Store } from "./store";

export interface Tab {
  /** Of this page, and stable while the terminal has no id yet. */
  key: number;
  id: string | null;
  title: string;
  cwd?: string;
}

export interface TabsState {
  tabs: readonly Tab[];
  active: number;
}

export interface Memory {
  load(): string | null;
  save(text: string): void;
}

export class TerminalTabs {
  readonly state = new Store<TabsState>({ tabs: [], active: 0 });
  #memory: Memory;
  #next = 1;

  constructor(memory: Memory) {
    this.#memory = memory;
  }

  /**
   * Takes up the remembered terminals that still run, or begins one. `running` in the order the machine lists them.
   * `all`: where nothing is remembered, all that run, as in a fork, which goes on with those of its original.
   */
  restore(running: readonly { id: string; title: string }[], all = false): void {
    let remembered: { ids: string[]; active: string | null } = { ids: [], active: null };
    const text = this.#memory.load();
    try {
      const raw = JSON.parse(text ?? "null") as typeof remembered | null;
      if (raw && Array.isArray(raw.ids)) remembered = raw;
    } catch {
      // Nothing that we wrote.
    }
    if (all && text === null) remembered.ids = running.map(({ id }) => id);
    const there = new Map(running.map((terminal) => [terminal.id, terminal]));
    const shown = new Set(this.state.value.tabs.map((tab) => tab.id));
    for (const id of remembered.ids) {
      const terminal = there.get(id);
      if (terminal && !shown.has(id)) this.#add(id, terminal.title);
    }
    const active = this.state.value.tabs.find((tab) => tab.id !== null && tab.id === remembered.active);
    if (active) this.show(active.key);
    if (this.state.value.tabs.length === 0) this.open();
  }

  open(cwd?: string): Tab {
    return this.#add(null, "", cwd);
  }

  /** Shows a terminal that runs on the machine already, in its tab if it has one. */
  attach(id: string, title: string): void {
    const shown = this.state.value.tabs.find((tab) => tab.id === id);
    if (shown) this.show(shown.key);
    else this.#add(id, title);
  }

  #add(id: string | null, title: string, cwd?: string): Tab {
    const tab: Tab = { key: this.#next++, id, title, ...(cwd === undefined ? {} : { cwd }) };
    this.state.update(({ tabs }) => ({ tabs: [...tabs, tab], active: tab.key }));
    this.#remember();
    return tab;
  }

  show(key: number): void {
    this.state.update((state) => ({ ...state, active: key }));
    this.#remember();
  }

  named(key: number, id: string): void {
    this.#patch(key, { id });
    this.#remember();
  }

  titled(key: number, title: string): void {
    this.#patch(key, { title });
  }

  close(key: number): void {
    this.state.update(({ tabs, active }) => {
      const at = tabs.findIndex((tab) => tab.key === key);
      const rest = tabs.filter((tab) => tab.key !== key);
      return {
        tabs: rest,
        active: active === key ? (rest[Math.min(at, rest.length - 1)]?.key ?? 0) : active,
      };
    });
    this.#remember();
  }

  /** Forgets all of them. */
  clear(): void {
    this.state.set({ tabs: [], active: 0 });
  }

  cycle(step: 1 | -1): void {
    const { tabs, active } = this.state.value;
    const at = tabs.findIndex((tab) => tab.key === active);
    const next = tabs[(at + step + tabs.length) % tabs.length];
    if (next) this.show(next.key);
  }

  #patch(key: number, change: Partial<Tab>): void {
    this.state.update((state) => ({
      ...state,
      tabs: state.tabs.map((tab) => (tab.key === key ? { ...tab, ...change } : tab)),
    }));
  }

  #remember(): void {
    const { tabs, active } = this.state.value;
    this.#memory.save(
      JSON.stringify({
        ids: tabs.flatMap((tab) => tab.id ?? []),
        active: tabs.find((tab) => tab.key === active)?.id ?? null,
      }),
    );
  }
}
