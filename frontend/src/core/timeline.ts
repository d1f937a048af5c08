/** The life of a sandbox as entries: one that begins a state lasts as long as that, others are moments of it. */
import type { TimelineEntry } from "./api";

/** The list, oldest first, after an entry was told; what is told again replaces what was known. */
export function extended(list: readonly TimelineEntry[], entry: TimelineEntry): TimelineEntry[] {
  const all = [...list.filter(({ id }) => id !== entry.id), entry].toSorted((a, b) => a.id - b.id);
  return all.map((one, index) => {
    const begins = all[index - 1]?.state !== one.state;
    const after = begins ? all.slice(index).find(({ state }) => state !== one.state) : undefined;
    const seconds = after ? (Date.parse(after.at) - Date.parse(one.at)) / 1000 : null;
    return { ...one, duration_seconds: seconds };
  });
}

export interface StageBar {
  name: string;
  seconds: number;
  /** Of the whole, from 0 to 1. */
  share: number;
}

/** As the node names them (vm/node/start.py, machines.py); tests/meta holds the two together. */
const STAGES: Record<string, string> = {
  queue: "Waited for its turn",
  snapshot: "Copied the memory it was forked from",
  image: "Copied its template's memory",
  disk: "Made its disk",
  network: "Made its network",
  domain: "Set the machine up, or loaded its memory",
  tap: "Shut it in its network",
  agent: "Waited for its agent",
  pool: "Took one that was waiting",
  identity: "Told it who it is",
  volumes: "Plugged its volumes in and mounted them",
};

export function stageName(stage: string): string {
  return STAGES[stage] ?? stage;
}

/** The stages of a start in their order, with what part of the time each took. */
export function bars(stages: Record<string, number>): StageBar[] {
  const entries = Object.entries(stages).filter(([, seconds]) => Number.isFinite(seconds) && seconds >= 0);
  const whole = entries.reduce((sum, [, seconds]) => sum + seconds, 0);
  return entries.map(([name, seconds]) => ({ name, seconds, share: whole > 0 ? seconds / whole : 0 }));
}
