/** The life of a sandbox as entries, each lasting until the next. */
import type { TimelineEntry } from "./api";

/** The list, oldest first, after an entry was told; what is told again replaces what was known. */
export function extended(list: readonly TimelineEntry[], entry: TimelineEntry): TimelineEntry[] {
  const all = [...list.filter(({ id }) => id !== entry.id), entry].toSorted((a, b) => a.id - b.id);
  return all.map((one, index) => {
    const after = all[index + 1];
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

const STAGES: Record<string, string> = {
  queue: "Waited for its turn",
  disk: "Made its disk",
  define: "Set the machine up",
  start: "Powered it on",
  boot: "Booted Linux",
  restore: "Loaded its memory",
  save: "Saved its memory",
  resume: "Let it go on",
  agent: "Waited for its agent",
  identity: "Told it who it is",
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
