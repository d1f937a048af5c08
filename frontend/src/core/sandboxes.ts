/** What a sandbox's state means to a person. */

import type { Sandbox } from "./api";
import { sentence, span } from "./format";

export const STATE_LABEL: Record<Sandbox["state"], string> = {
  queued: "Waiting",
  starting: "Starting",
  running: "Running",
  suspending: "Suspending",
  suspended: "Suspended",
  resuming: "Resuming",
  stopping: "Stopping",
  stopped: "Stopped",
  deleted: "Deleted",
};

const RESTING: readonly Sandbox["state"][] = ["suspended", "stopped", "deleted"];

/** Whether it counts towards what may run at a time. */
export function active(sandbox: Sandbox): boolean {
  return !RESTING.includes(sandbox.state);
}

export function title(sandbox: Sandbox): string {
  return sandbox.name || sandbox.id;
}

export function kindName(sandbox: Sandbox): string {
  if (sandbox.kind === "workspace") return "Workspace";
  return sandbox.session ? "Sandbox of a connection" : "Sandbox";
}

/** The badge's look: an answering machine, or one that does not. */
export function tone(sandbox: Sandbox): string {
  return sandbox.state === "running" && sandbox.unresponsive ? "lost" : sandbox.state;
}

export function label(sandbox: Sandbox): string {
  return tone(sandbox) === "lost" ? "Not answering" : STATE_LABEL[sandbox.state];
}

/** Where a sandbox is opened: in the IDE while it is or can be there, else what is known of it. */
export function address(sandbox: Sandbox, may: ReadonlySet<string>): string {
  const there = sandbox.kind === "workspace" ? sandbox.state !== "deleted" : active(sandbox);
  const page = `/sandboxes/${sandbox.id}`;
  return (there || sandbox.state === "suspended") && may.has("sandbox.use") ? page : `${page}/details`;
}

/** When it came to rest: suspended or stopped. */
export function rested(sandbox: Sandbox): string | null {
  return sandbox.stopped_at;
}

/** The reason as a sentence of its own; empty where the state says it all. */
export function reason(sandbox: Sandbox): string {
  return sentence(sandbox.state_reason);
}

/** How long it has been what it is. */
export function age(sandbox: Sandbox, now: number): string {
  const since = (time: string) => span((now - Date.parse(time)) / 1000);
  const rest = rested(sandbox);
  if ((sandbox.state === "suspended" || sandbox.state === "stopped") && rest) return `for ${since(rest)}`;
  if (sandbox.state === "running" && sandbox.started_at) return `up ${since(sandbox.started_at)}`;
  return since(sandbox.created_at);
}

export interface Lists {
  /** Newest first. */
  live: readonly Sandbox[];
  /** Those that can be brought back, latest deleted first. */
  deleted: readonly Sandbox[];
}

/** The lists after one of them changed. */
export function merged({ live, deleted }: Lists, changed: Sandbox): Lists {
  const other = (sandbox: Sandbox) => sandbox.id !== changed.id;
  const gone = changed.state === "deleted";
  const kept = gone && changed.restorable_until !== null;
  return {
    live: gone ? live.filter(other) : newest([...live.filter(other), changed], "created_at"),
    deleted: kept ? newest([...deleted.filter(other), changed], "deleted_at") : deleted.filter(other),
  };
}

function newest(list: Sandbox[], by: "created_at" | "deleted_at"): Sandbox[] {
  return list.toSorted((a, b) => Date.parse(b[by] ?? "") - Date.parse(a[by] ?? ""));
}
