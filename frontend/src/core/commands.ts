/** Everything a person can do, by name and key: one list for the palette, the shortcuts and their help. */
import { Store } from "./store";

export interface Command {
  id: string;
  title: string;
  group: string;
  /** As in "F1 or Ctrl+K"; on a Mac, Ctrl also answers to Command. */
  keys?: string;
  /** Those of the keys that work in a terminal too, which otherwise gets every key. */
  inTerminal?: string;
  when?(): boolean;
  run(): void;
}

export interface Key {
  key: string;
  ctrlKey: boolean;
  shiftKey: boolean;
  altKey: boolean;
  metaKey: boolean;
}

export function keyName(event: Key): string {
  const parts: string[] = [];
  if (event.ctrlKey || event.metaKey) parts.push("Ctrl");
  if (event.altKey) parts.push("Alt");
  if (event.shiftKey) parts.push("Shift");
  parts.push(event.key.length === 1 ? event.key.toUpperCase() : event.key);
  return parts.join("+");
}

export class Commands {
  readonly all = new Store<readonly Command[]>([]);

  /** Adds commands; returns the way to take them out again. */
  add(...commands: Command[]): () => void {
    this.all.update((all) => [...all, ...commands]);
    return () => this.all.update((all) => all.filter((command) => !commands.includes(command)));
  }

  get available(): Command[] {
    return this.all.value.filter((command) => command.when?.() ?? true);
  }

  /** The command of a key press, if there is one here. */
  find(event: Key, inTerminal: boolean): Command | undefined {
    const pressed = keyName(event);
    return this.available.find((command) =>
      (inTerminal ? command.inTerminal : command.keys)?.split(" or ").includes(pressed),
    );
  }
}

/** Commands whose title has all words of the query, best first: a word's beginning beats its middle. */
export function search(commands: readonly Command[], query: string): Command[] {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const score = (command: Command): number => {
    const title = `${command.title} ${command.group}`.toLowerCase();
    let total = 0;
    for (const word of words) {
      const at = title.indexOf(word);
      if (at < 0) return -1;
      total += at === 0 ? 3 : title[at - 1] === " " ? 2 : 1;
    }
    return total;
  };
  return commands
    .map((command) => ({ command, points: score(command) }))
    .filter(({ points }) => points >= 0)
    .toSorted((a, b) => b.points - a.points)
    .map(({ command }) => command);
}
